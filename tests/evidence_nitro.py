"""Genuine-looking Nitro attestation documents under a test PKI, bound to any report data.

    module = NitroModule()
    evidence = module.evidence(report_data, now=NOW)
    Inputs(now=NOW, roots={"nitro": (module.root,)})     # accepts it; AWS's root does not

The chain has the five certificates of a real one: root, region, zone, instance, and a signing one of three hours.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509 import BasicConstraints, Certificate, ExtensionType, KeyUsage

from tests.evidence_pki import der, ec_key, issue, usage

NOW: Final = 1_750_000_000
HOUR: Final = 3600
YEAR: Final = 365 * 24 * HOUR
ES384: Final = -35
NAMES: Final = ("aws.nitro-enclaves.test", "region.test", "zone.test", "i-0123456789abcdef0.test", "enclave.test")
"""Subjects from the root to the signing certificate; each owns a key."""

_AUTHORITY: Final = usage("digital_signature", "key_cert_sign", "crl_sign")
_LEAF: Final = usage("digital_signature", "content_commitment")


@dataclass(frozen=True, kw_only=True)
class NitroModule:
    """An enclave's security module and its certificates as of `now`. Every field can be wrong."""

    owner: str = "test"
    now: int = NOW
    constraints: dict[int, BasicConstraints | None] = field(default_factory=dict)
    """Position in NAMES -> basicConstraints in place of the right ones."""
    usages: dict[int, KeyUsage | None] = field(default_factory=dict)
    """Position in NAMES -> keyUsage in place of the right one."""
    extensions: dict[int, tuple[tuple[ExtensionType, bool], ...]] = field(default_factory=dict)
    curve: ec.EllipticCurve | None = None
    """Of the signing certificate, in place of P-384."""

    @cached_property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(self.curve) if self.curve else ec_key(f"{self.owner} {NAMES[-1]}")

    @cached_property
    def chain(self) -> tuple[Certificate, ...]:
        """From the root to the signing certificate."""
        keys = [ec_key(f"{self.owner} {name}") for name in NAMES[:-1]] + [self.key]
        leaf = len(NAMES) - 1
        certificates = []
        for index, (subject, key) in enumerate(zip(NAMES, keys, strict=True)):
            above = max(index - 1, 0)
            path_length = leaf - 1 - index if index else None
            right = BasicConstraints(ca=index < leaf, path_length=path_length if index < leaf else None)
            certificates.append(
                issue(
                    subject,
                    key,
                    NAMES[above],
                    keys[above],
                    since=self.now - 1 if index == leaf else self.now - HOUR,
                    until=self.now + (3 * HOUR if index == leaf else YEAR),
                    constraints=self.constraints.get(index, right),
                    key_usage=self.usages.get(index, _LEAF if index == leaf else _AUTHORITY),
                    extensions=self.extensions.get(index, ()),
                )
            )
        return tuple(certificates)

    @property
    def root(self) -> bytes:
        return der(self.chain[0])

    def payload(self, report_data: bytes | None) -> dict[str, Any]:
        """What is signed, before it is encoded."""
        pcrs = {index: bytes(48) for index in range(16)}
        pcrs |= {index: bytes((index + 1,)) * 48 for index in (0, 1, 2, 4)}
        return {
            "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
            "digest": "SHA384",
            "timestamp": self.now * 1000 + 578,
            "pcrs": pcrs,
            "certificate": der(self.chain[-1]),
            "cabundle": [der(one) for one in self.chain[:-1]],
            "public_key": None,
            "user_data": report_data,
            "nonce": None,
        }

    def sign(self, payload: bytes, *, protected: bytes | None = None) -> bytes:
        """A COSE_Sign1 without its tag over any payload, in the hash of ES384 whatever the header says."""
        header = cbor2.dumps({1: ES384}) if protected is None else protected
        signed = cbor2.dumps(["Signature1", header, b"", payload])
        r, s = decode_dss_signature(self.key.sign(signed, ec.ECDSA(SHA384())))
        return cbor2.dumps([header, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])

    def document(self, report_data: bytes | None, **changes: Any) -> bytes:
        """A signed document; `changes` replaces fields of the payload."""
        return self.sign(cbor2.dumps({**self.payload(report_data), **changes}))

    def evidence(self, report_data: bytes | None, **changes: Any) -> dict[str, Any]:
        return {"document": self.document(report_data, **changes).hex()}

    def but(self, **changes: Any) -> "NitroModule":
        return replace(self, **changes)
