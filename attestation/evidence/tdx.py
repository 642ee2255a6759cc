"""The `tdx` evidence format: an Intel TDX quote (version 4 or 5), checked offline against Intel's root.

`evidence` is ``{"quote": hex, "collateral"?: QuoteCollateralV3}``; other members are left to the formats built on this
one. Sources: Intel TDX DCAP Quoting Library API, Appendix 3 (the quote); Intel TDX Module ABI, ATTRIBUTES; Intel PCS
API v4 (collateral). The signature chain and the TCB levels are appraised by `dcap-qvl`, which pins Intel's root; what
it leaves to its caller is checked here. A quote can be rewritten without invalidating it (an ECDSA signature has a
twin), so nothing may be keyed on its hash.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import dcap_qvl  # type: ignore[import-untyped]  # ships stubs without the marker that would declare them

from attestation import encoding
from attestation.errors import EvidenceError, MalformedError
from attestation.evidence.appraisal import UP_TO_DATE, Appraisal, Checks, EvidencePolicy, Inputs, NotVerified
from attestation.evidence.collateral import Collateral, certificate_chain, parse_collateral

_T = TypeVar("_T")

TEE_TYPE: Final = "tdx"
MAX_QUOTE_BYTES: Final = 1 << 16
"""A quote has about 5,000 bytes; certificates make up most of it."""
REQUIRED_REGISTERS: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2")
"""What a measurement allow-list must name: the firmware and the system it booted."""

_TDX_HEADER: Final = 0x81
_ECDSA_P256: Final = 2
_PCK_CHAIN_IN_QUOTE: Final = 5
_QE_REPORT: Final = 6
_HEADER_BYTES: Final = 48
_REPORT_10_BYTES: Final = 584
_MAX_MESSAGE: Final = 300

_REGISTERS_10: Final = {
    "mrtd": "mr_td",
    "rtmr0": "rt_mr0",
    "rtmr1": "rt_mr1",
    "rtmr2": "rt_mr2",
    "rtmr3": "rt_mr3",
    "mr_config_id": "mr_config_id",
    "mr_owner": "mr_owner",
    "mr_owner_config": "mr_owner_config",
    "mr_seam": "mr_seam",
    "mr_signer_seam": "mr_signer_seam",
    "seam_attributes": "seam_attributes",
    "td_attributes": "td_attributes",
    "tee_tcb_svn": "tee_tcb_svn",
    "xfam": "xfam",
}
_REGISTERS_15: Final = {**_REGISTERS_10, "mr_service_td": "mr_service_td", "tee_tcb_svn2": "tee_tcb_svn2"}
_REGISTERS_15EX: Final = {
    **_REGISTERS_15,
    "td_id": "td_id",
    "dev_info": "dev_info",
    "init_service_td_hash": "init_service_td_hash",
    "cur_service_td_hash": "cur_service_td_hash",
}
_REPORTS: Final = (
    (dcap_qvl.TdReport15Ex, _REGISTERS_15EX),
    (dcap_qvl.TdReport15, _REGISTERS_15),
    (dcap_qvl.TdReport10, _REGISTERS_10),
)

_UNDER_DEBUG: Final = 0xFF
"""ATTRIBUTES bits 0-7 (TUD): debug and profiling. Any of them makes the TD untrusted."""
_SERVTD_EXT: Final = 1 << 17
_SEPT_VE_DISABLE: Final = 1 << 28
_MIGRATABLE: Final = 1 << 29


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a TDX quote says. Its signature is not checked yet."""

    raw: bytes
    """The quote without the padding after it."""
    version: int
    registers: Mapping[str, str]
    """Register -> lower-case hex."""
    report_data: bytes
    carries_pck_chain: bool
    """Whether the platform's certificate is inside the quote."""
    fmspc: str | None
    ppid: str | None
    """The platform's provisioning id, where the certificate is inside the quote."""

    @property
    def attributes(self) -> int:
        """TD ATTRIBUTES as a number, bit 0 first."""
        return int.from_bytes(bytes.fromhex(self.registers["td_attributes"]), "little")


@dataclass(slots=True)
class Examined:
    """What the checks of one appraisal have found so far."""

    quote: Quote | None = None
    collateral: Collateral | None = None
    claims: dict[str, Any] | None = None
    """What `dcap-qvl` established; None unless the signature chain holds."""
    measured: dict[str, str] = field(default_factory=dict)
    """What stands in the quote's registers, and what a format on top of this one derives from them."""

    @property
    def ppid(self) -> str | None:
        if self.claims is not None:
            return bytes(self.claims["platform"]["pck"]["ppid"]).hex()
        return None if self.quote is None else self.quote.ppid

    @property
    def advisories(self) -> tuple[str, ...]:
        """Every advisory that concerns the platform, its quoting enclave, or the TDX module now loaded."""
        if self.claims is None:
            return ()
        current = self.claims["platform"]["current_tcb_level"] or {}
        return tuple(sorted({*self.claims["tcb"]["advisory_ids"], *current.get("advisoryIDs", ())}))

    def appraisal(self, checks: Checks) -> Appraisal:
        return Appraisal(
            tee_type=TEE_TYPE,
            is_hardware=True,
            checks=checks.done,
            report_data=None if self.quote is None else self.quote.report_data,
            measurements=self.measured,
            tcb_status=None if self.claims is None else self.claims["tcb"]["status"],
            advisories=self.advisories,
            chip=self.ppid,
        )


def appraise(evidence: Any, inputs: Inputs) -> Appraisal:
    """Check a TDX quote with its collateral.

    Args:
        evidence: the report's `evidence` object.
        inputs: `collateral` there wins over the evidence's own; `roots["tdx"]` replaces Intel's root.
    """
    checks = Checks()
    found = examine(evidence, inputs, checks)
    checks.run("tdx.measurements", lambda: check_measurements(found.measured, inputs.policy))
    return found.appraisal(checks)


def examine(evidence: Any, inputs: Inputs, checks: Checks) -> Examined:
    """Run every check of a TDX quote except the one of its measurements, to which a format on top may add some."""
    found = Examined()

    def quote_format() -> str:
        document = encoding.as_object(evidence, "evidence")
        found.quote = quote = parse_quote(encoding.hex_bytes(document.get("quote"), "evidence.quote"))
        found.measured = dict(quote.registers)
        return f"a TDX quote, version {quote.version}"

    def collateral() -> str:
        quote = need(found.quote, "tdx.format")
        document = inputs.collateral if inputs.collateral is not None else evidence.get("collateral")
        if document is None:
            raise NotVerified("there is no collateral, neither from the verifier nor beside the quote")
        parsed = parse_collateral(document)
        if quote.fmspc is not None and quote.fmspc != parsed.fmspc:
            raise EvidenceError(f"FMSPC mismatch: collateral for {parsed.fmspc}, quote from {quote.fmspc}")
        found.collateral = parsed
        parsed.check_time(inputs.now)
        source = "the verifier's" if inputs.collateral is not None else "the evidence's own"
        return f"{source}, for {parsed.fmspc}, holds from {parsed.issued_at} to {parsed.expires_at}"

    def signature() -> str:
        quote = need(found.quote, "tdx.format")
        found.claims = _verify(quote, need(found.collateral, "tdx.collateral"), inputs)
        return f"signed by a TDX quoting enclave on a platform certified under {_root(inputs)}"

    checks.run("tdx.format", quote_format)
    checks.run("tdx.collateral", collateral)
    checks.run("tdx.signature", signature)
    checks.run("tdx.tcb", lambda: _tcb(need(found.claims, "tdx.signature"), inputs.policy))
    checks.run("tdx.evaluation", lambda: _evaluation(need(found.claims, "tdx.signature"), inputs.policy))
    checks.run("tdx.advisories", lambda: _advisories(found, inputs.policy))
    checks.run("tdx.debug", lambda: _debug(need(found.quote, "tdx.format")))
    checks.run("tdx.attributes", lambda: _attributes(need(found.quote, "tdx.format")))
    checks.run("tdx.denied", lambda: _denied(found, inputs.policy))
    return found


def need(value: _T | None, check_id: str) -> _T:
    """The value that another check establishes.

    Raises:
        NotVerified: that check has not established it.
    """
    if value is None:
        raise NotVerified(f"rests on {check_id}")
    return value


def read_quote(data: bytes) -> bytes:
    """The bytes of a quote from a file that holds them raw, or as hex in any of the ways in which tools write it.

    Raises:
        MalformedError: text that is not hex.
    """
    if data[:2] in (b"\x03\x00", b"\x04\x00", b"\x05\x00"):  # a quote begins with its version
        return data
    text = b"".join(data.split()).removeprefix(b"0x").lower()
    return encoding.hex_bytes(text.decode("ascii", "replace"), "quote")


def parse_quote(raw: bytes) -> Quote:
    """Read a TDX quote, version 4 or 5, with an ECDSA P-256 attestation key.

    Raises:
        MalformedError: the bytes are no quote, or hold some that no signature covers.
        EvidenceError: a quote of another TEE, or with another kind of key.
    """
    if len(raw) > MAX_QUOTE_BYTES:
        raise MalformedError("evidence.quote", f"must be at most {MAX_QUOTE_BYTES} bytes, is {len(raw)}")
    try:
        parsed = dcap_qvl.parse_quote(raw)
    except ValueError as error:
        raise MalformedError("evidence.quote", f"is not a quote ({printable(str(error))})") from error
    header, report = parsed.header, parsed.report
    names = next((names for kind, names in _REPORTS if isinstance(report, kind)), None)
    if header.tee_type != _TDX_HEADER or names is None:
        raise EvidenceError("the quote is of an SGX enclave, not of a TDX domain")
    if header.attestation_key_type != _ECDSA_P256:
        raise EvidenceError(
            f"attestation keys of type {header.attestation_key_type} cannot be checked, only ECDSA P-256"
        )
    end, chain = _layout(raw, header.version)
    extension = None
    if chain is not None:
        certificate_chain(chain, "evidence.quote's certificates")
        extension = parsed.pck_extension()
    return Quote(
        raw=raw[:end],
        version=header.version,
        registers={name: getattr(report, attribute).hex() for name, attribute in names.items()},
        report_data=report.report_data,
        carries_pck_chain=chain is not None,
        fmspc=None if extension is None else extension.fmspc.hex(),
        ppid=None if extension is None else extension.ppid.hex(),
    )


def _layout(raw: bytes, version: int) -> tuple[int, bytes | None]:
    """Where the quote ends, and the PEM chain in it if it has one.

    The parser skips bytes between the parts of a quote and after it. Nothing signs them, so there must be none; only
    the zeros with which quoting services fill their buffer are usual.
    """

    def number(data: bytes, offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    signed = _HEADER_BYTES + (_REPORT_10_BYTES if version == 4 else 6 + number(raw, _HEADER_BYTES + 2, 4))
    end = signed + 4 + number(raw, signed, 4)
    if any(raw[end:]):
        raise MalformedError("evidence.quote", f"is followed by {len(raw) - end} bytes that are not part of it")
    # signature, attestation key, type and size of what certifies the key
    authentication = raw[signed + 4 : end]
    certification = authentication[134:]
    if number(authentication, 128, 2) != _QE_REPORT or len(certification) != number(authentication, 130, 4):
        raise MalformedError("evidence.quote", "must certify its key by a quoting enclave's report, and end there")
    # the enclave's report, its signature, its own data, type and size of the platform's certificates
    start = 450 + number(certification, 448, 2)
    chain = certification[start + 6 :]
    if len(chain) != number(certification, start + 2, 4):
        raise MalformedError("evidence.quote", "must end with the certificates of the platform")
    carries_chain = number(certification, start, 2) == _PCK_CHAIN_IN_QUOTE
    return end, chain.rstrip(b"\0") if carries_chain else None


def _verify(quote: Quote, collateral: Collateral, inputs: Inputs) -> dict[str, Any]:
    """What `dcap-qvl` establishes under the first of the roots that vouches for the quote."""
    roots = inputs.roots.get(TEE_TYPE)
    verifiers = [dcap_qvl.QuoteVerifier(root) for root in ([None] if roots is None else roots)]
    document = collateral.to_json(with_pck_chain=not quote.carries_pck_chain)
    reason = "no root is trusted"
    for verifier in verifiers:
        try:
            claims = verifier.verify_with_policy(
                quote.raw,
                dcap_qvl.QuoteCollateralV3.from_json(document),
                inputs.now,
                # Its own policies leave out some checks silently; ours are run one by one, each under its name.
                dcap_qvl.QuotePolicy.claims_only(inputs.now),
            )
        except ValueError as error:
            reason = printable(str(error))
            continue
        found = encoding.as_object(encoding.parse_json(claims.to_json(), "claims"), "claims")
        if not found["latest_issue_date"] <= inputs.now <= found["earliest_expiration_date"]:
            reason = "a certificate or a revocation list is not valid at the time of the check"
            continue
        return found
    raise EvidenceError(f"the quote does not verify under {_root(inputs)}: {reason}")


def _root(inputs: Inputs) -> str:
    return "Intel's root" if inputs.roots.get(TEE_TYPE) is None else "a root that the verifier named"


def _tcb(claims: Mapping[str, Any], policy: EvidencePolicy) -> str:
    status = claims["tcb"]["status"]
    if status not in policy.tcb_statuses:
        raise EvidenceError(f"TCB status {status}, acceptable: {', '.join(sorted(policy.tcb_statuses)) or 'none'}")
    # A TDX module can be replaced under a running TD: quotes of TDX 1.5 also state the level of the one loaded now.
    current = (claims["platform"]["current_tcb_level"] or {}).get("tcbStatus", UP_TO_DATE)
    if current not in policy.tcb_statuses | {UP_TO_DATE}:
        raise EvidenceError(f"TCB status {status} at launch, but {current} with the TDX module loaded now")
    return f"TCB status {status}"


def _evaluation(claims: Mapping[str, Any], policy: EvidencePolicy) -> str:
    number = claims["tcb"]["eval_data_number"]
    if policy.minimum_tcb_evaluation is None:
        raise NotVerified(f"the policy names no minimum for the TCB evaluation number ({number})")
    if number < policy.minimum_tcb_evaluation:
        raise EvidenceError(f"TCB evaluation number {number}, at least {policy.minimum_tcb_evaluation} is demanded")
    return f"TCB evaluation number {number}"


def _advisories(found: Examined, policy: EvidencePolicy) -> str:
    need(found.claims, "tdx.signature")
    if missing := [advisory for advisory in found.advisories if advisory not in policy.tolerated_advisories]:
        raise EvidenceError(f"the platform is subject to {', '.join(missing)}")
    return f"tolerated: {', '.join(found.advisories)}" if found.advisories else "none"


def _debug(quote: Quote) -> str:
    if under_debug := quote.attributes & _UNDER_DEBUG:
        raise EvidenceError(f"the TD can be debugged or profiled from outside (ATTRIBUTES.TUD {under_debug:#04x})")
    return "the TD cannot be debugged"


def _attributes(quote: Quote) -> str:
    if quote.attributes & _MIGRATABLE:
        raise EvidenceError("the TD can be moved to another platform")
    if not quote.attributes & _SEPT_VE_DISABLE:
        raise EvidenceError("the host can make the TD fault on its own memory (SEPT_VE_DISABLE is not set)")
    if quote.attributes & _SERVTD_EXT or any(bytes.fromhex(quote.registers.get("mr_service_td", ""))):
        raise EvidenceError("a service TD, of which nothing is known, is bound to the TD")
    return "the TD stays on its platform and has no service TD"


def _denied(found: Examined, policy: EvidencePolicy) -> str:
    need(found.quote, "tdx.format")
    if found.ppid is None:
        raise NotVerified("the quote does not carry the certificate that names its platform")
    if found.ppid in policy.denied:
        raise EvidenceError(f"the platform with PPID {found.ppid} is denied")
    return f"PPID {found.ppid} is not on the deny-list"


def check_measurements(measured: Mapping[str, str], policy: EvidencePolicy, *, also_one_of: Iterable[str] = ()) -> str:
    """Compare what was measured with the policy's allow-list: one set must match in all it names.

    Args:
        measured: register -> lower-case hex; empty when the quote could not be read.
        policy: its `measurements["tdx"]` is the list; each set in it must name all `REQUIRED_REGISTERS`.
        also_one_of: only sets that name one of these are considered.

    Raises:
        NotVerified: there is no policy for measurements, or nothing to compare.
        EvidenceError: no set matches, or a set leaves out what it must name.
    """
    if policy.measurements is None:
        raise NotVerified("the policy names no measurements")
    if not measured:
        raise NotVerified("rests on tdx.format")
    sets = policy.measurements.get(TEE_TYPE, ())
    if not sets:
        raise EvidenceError(f"the policy accepts no {TEE_TYPE} measurements")
    for accepted in sets:
        if missing := [name for name in REQUIRED_REGISTERS if name not in accepted]:
            raise EvidenceError(f"a set of the policy does not name {', '.join(missing)}, and so would accept any")
    if names := tuple(also_one_of):
        sets = tuple(accepted for accepted in sets if any(name in accepted for name in names))
        if not sets:
            raise EvidenceError(f"no set of the policy names {' or '.join(names)}: any application would be accepted")
    differing = [[name for name, value in accepted.items() if measured.get(name) != value] for accepted in sets]
    nearest = min(differing, key=len)
    if nearest:
        raise EvidenceError(f"not on the allow-list; in the nearest set these differ: {', '.join(nearest)}")
    accepted = sets[differing.index(nearest)]
    left_open = (
        "" if names or "rtmr3" in accepted else "; RTMR3, what was loaded after boot, is left open by the policy"
    )
    return f"on the allow-list: {', '.join(accepted)}{left_open}"


def printable(text: str) -> str:
    """Text from outside as one line of bounded length, fit for a message."""
    return re.sub(r"[^ -~]+", " ", text)[:_MAX_MESSAGE]
