"""Genuine-looking SEV-SNP evidence under a test PKI, bound to any report data.

    machine = SnpMachine()                                  # a Milan with a VCEK
    evidence = machine.evidence(report_data)
    Inputs(now=NOW, roots={"sev_snp": (machine.root,)})     # accepts it; AMD's root does not

Reports have the layout of AMD 56860, certificates the extensions of AMD 57230; see attestation/evidence/sev_snp.py.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509 import BasicConstraints, Certificate, ExtensionType, KeyUsage, UnrecognizedExtension
from cryptography.x509.oid import ObjectIdentifier

from attestation.evidence.sev_snp import REPORT_BYTES, SIGNED_BYTES, make_evidence
from tests.evidence_pki import Key, authority, der, ec_key, issue, revocation_list, rsa_key, usage

NOW: Final = 1_750_000_000
SINCE: Final = NOW - 86_400
UNTIL: Final = NOW + 86_400

ROOT_CONSTRAINTS: Final = BasicConstraints(ca=True, path_length=None)
ROOT_SERIAL: Final = 0x10000
AUTHORITY_SERIAL: Final = 0x10001
ARC: Final = "1.3.6.1.4.1.3704.1"
_AUTHORITY_USAGE: Final = usage("key_cert_sign")
_AUTHORITY_CONSTRAINTS: Final = BasicConstraints(ca=True, path_length=0)
_ROOT_USAGE: Final = usage("key_cert_sign", "crl_sign")

# Extension -> security patch level, for a TCB_VERSION in the byte order of each product line.
_LEVELS: Final = {
    "Milan": ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"),
    "Genoa": ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"),
    "Turin": ("3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8"),
}
_TCBS: Final = {
    "Milan": bytes((4, 0, 0, 0, 0, 0, 24, 219)),
    "Genoa": bytes((10, 0, 0, 0, 0, 0, 23, 84)),
    "Turin": bytes((1, 2, 3, 4, 0, 0, 0, 75)),
}
_CPUS: Final = {"Milan": (0x19, 0x01, 0x01), "Genoa": (0x19, 0x11, 0x01), "Turin": (0x1A, 0x02, 0x01)}
_CHIPS: Final = {"Milan": bytes(range(64)), "Genoa": bytes(range(64, 128)), "Turin": bytes(range(1, 9))}


def integer(number: int) -> bytes:
    """A DER INTEGER of one level, with the leading zero that 128 and more need."""
    content = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return bytes((2, len(content))) + content


def ia5(text: str) -> bytes:
    return bytes((0x16, len(text))) + text.encode()


@dataclass(frozen=True, kw_only=True)
class SnpMachine:
    """A platform and its certificates. Every field can be wrong; `replace` makes it so."""

    line: str = "Milan"
    vlek: bool = False
    owner: str = "test"
    """Whose root it is; machines of other owners have other keys."""
    chip: bytes | None = None
    """What the VCEK names: 64 bytes, 8 for Turin; None for the usual one."""
    tcb: bytes | None = None
    """The certified TCB_VERSION; None for the usual one."""
    extensions: dict[str, bytes | None] = field(default_factory=dict)
    """Extension below AMD's arc -> value in place of the right one; None leaves it out."""
    leaf_extensions: tuple[tuple[ExtensionType, bool], ...] = ()
    leaf_key: Key | None = None
    leaf_serial: int = 7
    authority_name: str | None = None
    authority_constraints: BasicConstraints | None = _AUTHORITY_CONSTRAINTS
    authority_usage: KeyUsage | None = _AUTHORITY_USAGE
    root_usage: KeyUsage | None = _ROOT_USAGE
    since: int = SINCE
    until: int = UNTIL

    @property
    def key(self) -> Key:
        return self.leaf_key or ec_key(f"{self.owner} {self.line} leaf {self.vlek} {self.chip_id.hex()}")

    @property
    def chip_id(self) -> bytes:
        """As the VCEK names it."""
        return _CHIPS[self.line] if self.chip is None else self.chip

    @property
    def certified_tcb(self) -> bytes:
        return _TCBS[self.line] if self.tcb is None else self.tcb

    @property
    def names(self) -> tuple[str, str, str]:
        """Of the leaf, its authority and the root."""
        kind = "VLEK" if self.vlek else "VCEK"
        authority = self.authority_name or (f"SEV-VLEK-{self.line}" if self.vlek else f"SEV-{self.line}")
        return f"SEV-{kind}", authority, f"ARK-{self.line}"

    @property
    def keys(self) -> tuple[str, str]:
        """Owners, for `rsa_key`, of the authority's and the root's key."""
        _, authority_name, root = self.names
        return f"{self.owner} {authority_name}", f"{self.owner} {root}"

    @cached_property
    def chain(self) -> tuple[Certificate, Certificate, Certificate]:
        leaf, second, root = self.names
        key, root_key = self.keys
        extensions = (*self._amd_extensions(), *self.leaf_extensions)
        limits = self.authority_constraints, self.authority_usage
        return (
            issue(
                leaf,
                self.key,
                second,
                rsa_key(key),
                since=self.since,
                until=self.until,
                extensions=extensions,
                serial=self.leaf_serial,
            ),
            authority(second, key, root, root_key, SINCE, UNTIL, *limits, AUTHORITY_SERIAL),
            authority(root, root_key, root, root_key, SINCE, UNTIL, ROOT_CONSTRAINTS, self.root_usage, ROOT_SERIAL),
        )

    @property
    def certificates(self) -> tuple[bytes, bytes, bytes]:
        """DER: VCEK or VLEK, ASK or ASVK, ARK."""
        leaf, authority, root = self.chain
        return der(leaf), der(authority), der(root)

    @property
    def root(self) -> bytes:
        return self.certificates[2]

    def _amd_extensions(self) -> list[tuple[ExtensionType, bool]]:
        levels = zip(_LEVELS[self.line], self.certified_tcb, strict=True)
        values: dict[str, bytes | None] = {"1": integer(0), "2": ia5(self.line if self.vlek else f"{self.line}-B0")}
        values |= {name: integer(level) for name, level in levels}
        values |= {"5": ia5("provider.example")} if self.vlek else {"4": self.chip_id}
        values |= self.extensions
        return [
            (UnrecognizedExtension(ObjectIdentifier(f"{ARC}.{name}"), value), False)
            for name, value in values.items()
            if value is not None
        ]

    def report(self, report_data: bytes, *, version: int = 3, patches: dict[int, bytes] | None = None) -> bytes:
        """A signed report; `patches` overwrites signed bytes from an offset on, before they are signed."""
        body = bytearray(SIGNED_BYTES)
        fields = {
            0x000: version.to_bytes(4, "little"),
            0x004: (1).to_bytes(4, "little"),
            0x008: (0x3001F).to_bytes(8, "little"),
            0x034: (1).to_bytes(4, "little"),
            0x038: self.certified_tcb,
            0x040: (1).to_bytes(8, "little"),
            0x048: (int(self.vlek) << 2).to_bytes(4, "little"),
            0x050: report_data,
            0x090: bytes(range(48)),
            0x0C0: bytes(range(100, 132)),
            0x140: bytes(range(32)),
            0x160: b"\xff" * 32,
            0x180: self.certified_tcb,
            0x1A0: self.chip_id,
            0x1E0: self.certified_tcb,
            0x1E8: bytes((4, 55, 1, 0, 4, 55, 1)),
            0x1F0: self.certified_tcb,
        }
        if version >= 3:
            fields[0x188] = bytes(_CPUS[self.line])
        if version >= 5:
            fields[0x1F8] = bytes((3, 0, 0, 0, 0, 0, 0, 0, 7))
        for offset, content in {**fields, **(patches or {})}.items():
            body[offset : offset + len(content)] = content
        return bytes(body) + self.sign(bytes(body))

    def sign(self, body: bytes) -> bytes:
        """The report's signature field: r and s, little-endian in 72 bytes each, and zeros."""
        key = self.key
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(body, ec.ECDSA(SHA384())))
        field = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return field.ljust(REPORT_BYTES - SIGNED_BYTES, b"\0")

    def evidence(
        self, report_data: bytes, *, version: int = 3, patches: dict[int, bytes] | None = None
    ) -> dict[str, Any]:
        return make_evidence(self.report(report_data, version=version, patches=patches), self.certificates)

    def crl(self, *entries: Any, **changes: Any) -> bytes:
        """The root's revocation list; changes are those of `revocation_list`."""
        life = {"since": SINCE, "until": UNTIL}
        return revocation_list(self.names[2], rsa_key(self.keys[1]), *entries, **{**life, **changes})

    def but(self, **changes: Any) -> "SnpMachine":
        return replace(self, **changes)
