"""Policies as TOML files, for people to read, review and keep.

    tee = ["tdx", "sev_snp"]
    manifests = ["sha256:..."]

    [[measurements.tdx]]
    mrtd = "..."
    rtmr0 = "..."

Every name is checked: a misspelt one would otherwise demand nothing. docs/formats.md lists them all.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attestation import encoding
from attestation.errors import MalformedError
from attestation.evidence.appraisal import EvidencePolicy
from attestation.onchain import AgentReference
from attestation.policy import Policy

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NAME: Final = re.compile(r"[a-z0-9_]{1,64}")
_DEFAULT: Final = Policy()

_SECTIONS: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset({"allow_simulated", "tee", "manifests"}),
    "keyset": frozenset({"max_lifetime_seconds"}),
    "report": frozenset({"max_age_seconds"}),
    "tcb": frozenset({"statuses", "tolerated_advisories", "minimum_evaluation", "maximum_vmpl"}),
    "deny": frozenset({"chips", "digests"}),
    "agent": frozenset({"reference", "owner"}),
    "checks": frozenset({"required"}),
    "collateral": frozenset({"url"}),
}


def load_policy(text: str) -> Policy:
    """A policy from the text of a TOML file; what it does not name keeps the strict default.

    Raises:
        MalformedError: not TOML, an unknown name, or a value of the wrong kind; the name is given.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MalformedError("policy", f"must be TOML ({error})") from error
    sections = {name: encoding.as_object(document.pop(name, {}), f"policy.{name}") for name in _SECTIONS if name}
    measurements = encoding.as_object(document.pop("measurements", {}), "policy.measurements")
    sections[""] = document
    for name, known in _SECTIONS.items():
        encoding.only(sections[name], f"policy.{name}".rstrip("."), set(), known)
    top, tcb, deny, agent = sections[""], sections["tcb"], sections["deny"], sections["agent"]
    evidence = EvidencePolicy(
        measurements=_measurements(measurements) if measurements else None,
        tcb_statuses=_texts(tcb, "statuses", _DEFAULT.evidence.tcb_statuses),
        tolerated_advisories=_texts(tcb, "tolerated_advisories", _DEFAULT.evidence.tolerated_advisories),
        minimum_tcb_evaluation=_number(tcb, "minimum_evaluation", _DEFAULT.evidence.minimum_tcb_evaluation),
        maximum_vmpl=_number(tcb, "maximum_vmpl", _DEFAULT.evidence.maximum_vmpl) or 0,
        denied=_texts(deny, "chips", frozenset()),
    )
    allow_simulated = top.get("allow_simulated", False)
    if not isinstance(allow_simulated, bool):
        raise MalformedError("policy.allow_simulated", "must be true or false")
    owner, reference = agent.get("owner"), agent.get("reference")
    url = sections["collateral"].get("url")
    return Policy(
        allow_simulated=allow_simulated,
        tee_types=_texts(top, "tee", None),
        evidence=evidence,
        manifest_digests=_digests(top, "manifests"),
        denied=_digests(deny, "digests") or frozenset(),
        agent=None if reference is None else AgentReference.parse(encoding.text(reference, "policy.agent.reference")),
        owner=None if owner is None else encoding.address(owner, "policy.agent.owner"),
        max_keyset_lifetime_seconds=_positive(
            sections["keyset"], "max_lifetime_seconds", _DEFAULT.max_keyset_lifetime_seconds
        ),
        max_report_age_seconds=_positive(sections["report"], "max_age_seconds", _DEFAULT.max_report_age_seconds),
        optional=_DEFAULT.optional - (_texts(sections["checks"], "required", frozenset()) or frozenset()),
        collateral_url=None if url is None else encoding.text(url, "policy.collateral.url"),
    )


def dump_policy(policy: Policy, *, comment: str) -> str:
    """The text of a file that `load_policy` reads as the same policy; `comment` goes on top, one `#` a line."""
    lines = [f"# {line}" for line in comment.splitlines()]
    evidence = policy.evidence
    top: dict[str, Any] = {"allow_simulated": policy.allow_simulated}
    if policy.tee_types is not None:
        top["tee"] = sorted(policy.tee_types)
    if policy.manifest_digests is not None:
        top["manifests"] = sorted(policy.manifest_digests)
    tcb: dict[str, Any] = {
        "statuses": sorted(evidence.tcb_statuses),
        "tolerated_advisories": sorted(evidence.tolerated_advisories),
        "maximum_vmpl": evidence.maximum_vmpl,
    }
    if evidence.minimum_tcb_evaluation is not None:
        tcb["minimum_evaluation"] = evidence.minimum_tcb_evaluation
    agent = {"reference": str(policy.agent)} if policy.agent is not None else {}
    sections: dict[str, Mapping[str, Any]] = {
        "keyset": {"max_lifetime_seconds": policy.max_keyset_lifetime_seconds},
        "report": {"max_age_seconds": policy.max_report_age_seconds},
        "tcb": tcb,
        "deny": {"chips": sorted(evidence.denied), "digests": sorted(policy.denied)},
        "agent": {**agent, **({"owner": policy.owner} if policy.owner is not None else {})},
        "checks": {"required": sorted(_DEFAULT.optional - policy.optional)},
        "collateral": {} if policy.collateral_url is None else {"url": policy.collateral_url},
    }
    lines += _entries(top)
    for name, section in sections.items():
        if section:
            lines += ["", f"[{name}]", *_entries(section)]
    for tee_type, accepted in sorted((evidence.measurements or {}).items()):
        for registers in accepted:
            lines += ["", f"[[measurements.{tee_type}]]", *_entries(dict(sorted(registers.items())))]
    return "\n".join(lines) + "\n"


def _entries(values: Mapping[str, Any]) -> Iterator[str]:
    # JSON's strings, numbers, booleans and lists of strings are TOML's, but for surrogate pairs and DEL.
    texts = ((name, json.dumps(value, ensure_ascii=False)) for name, value in values.items())
    return (f"{name} = {text}".replace("\x7f", "\\u007f") for name, text in texts)


def _measurements(section: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, str], ...]]:
    found: dict[str, tuple[Mapping[str, str], ...]] = {}
    for tee_type, accepted in section.items():
        where = f"policy.measurements.{tee_type}"
        if not isinstance(accepted, list) or not accepted:
            raise MalformedError(where, "must be a list of tables: [[measurements.<tee>]]")
        found[tee_type] = tuple(_registers(encoding.as_object(entry, where), where) for entry in accepted)
    return found


def _registers(entry: Mapping[str, Any], where: str) -> dict[str, str]:
    if not entry:
        raise MalformedError(where, "must name at least one register")
    for name, value in entry.items():
        if not _NAME.fullmatch(name):
            raise MalformedError(f"{where}.{name}", "is not the name of a register")
        encoding.hex_bytes(value, f"{where}.{name}")
    return dict(entry)


def _texts(section: Mapping[str, Any], name: str, default: Any) -> Any:
    if name not in section:
        return default
    values = section[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise MalformedError(f"policy.{name}", "must be a list of texts")
    return frozenset(values)


def _digests(section: Mapping[str, Any], name: str) -> frozenset[str] | None:
    values: frozenset[str] | None = _texts(section, name, None)
    for value in values or ():
        if not _DIGEST.fullmatch(value):
            raise MalformedError(f"policy.{name}", "must hold digests: sha256: and 64 lower-case hex characters")
    return values


def _number(section: Mapping[str, Any], name: str, default: int | None) -> int | None:
    return default if name not in section else encoding.integer(section[name], f"policy.{name}")


def _positive(section: Mapping[str, Any], name: str, default: int) -> int:
    return encoding.integer(section.get(name, default), f"policy.{name}", minimum=1)
