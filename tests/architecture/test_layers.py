"""The layout is the architecture: who may import whom, and where a primitive may stand."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("attestation", "service")

HASHES_AND_SIGNATURES = {
    "hashlib",
    "hmac",
    "nacl",
    "coincurve",
    "eth_keys",
    "cryptography",
    "http_message_signatures",
    "rfc8785",
    "Crypto",
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


MODULES = dict(modules())
IMPORTS = {name: imports(path) for name, path in MODULES.items()}


EVIDENCE_FORMATS = [name for name in MODULES if (name + ".").startswith("attestation.evidence.")]


def importers(package: str) -> set[str]:
    return {name for name, found in IMPORTS.items() if package in top(found)}


def importers_of(module: str) -> set[str]:
    return {name for name, found in IMPORTS.items() if module in found}


def test_there_is_something_to_check() -> None:
    assert {"attestation.verifier", "service.app", "service.payment.ledger"} <= MODULES.keys()


def test_attestation_never_imports_the_service_or_what_only_a_service_needs() -> None:
    forbidden = {"service", "fastapi", "starlette", "uvicorn", "ollama", "xllamacpp", "sqlalchemy", "pydantic_settings"}
    assert {
        name: found & forbidden
        for name, found in ((name, top(names)) for name, names in IMPORTS.items() if name.startswith("attestation"))
        if found & forbidden
    } == {}


def test_web3_stays_with_the_registry_and_what_deploys() -> None:
    allowed = ("attestation.registry", "service.localchain")
    assert {name for name in importers("web3") if not name.startswith(allowed)} == set()


def test_x402_stays_with_payment_http_and_the_client() -> None:
    allowed = ("service.payment", "service.http", "attestation.client")
    assert {name for name in importers("x402") if not name.startswith(allowed)} == set()


def test_no_hash_or_signature_primitive_outside_attestation() -> None:
    users = {
        name for name, found in IMPORTS.items() if name.startswith("service") and top(found) & HASHES_AND_SIGNATURES
    }
    assert users == set()


def test_verification_exists_once() -> None:
    """Only the verifier calls the parts that a verdict is made of; everybody else calls the verifier."""
    parts = {
        "attestation.http_signature.verify_response",
        "attestation.http_signature.verify_stream_head",
        "attestation.purchase.check_offer",
        "attestation.receipt.check_signature",
    }
    verifier = {"attestation.verifier", "attestation.service_checks"}
    assert {name for name, found in IMPORTS.items() if found & parts} == verifier
    # Evidence alone may also be looked at by the commands that are about evidence alone.
    alone = {"attestation.evidence_cli", "attestation.policy_cli"}
    assert importers_of("attestation.evidence.appraise") - alone == {"attestation.service_checks"}
    assert importers_of("attestation.service_checks") == {"attestation.verifier"}
    assert importers_of("attestation.transcript") == {"attestation.service_checks"}


def test_the_judgement_is_pure() -> None:
    """The verifier and what it is made of touch neither network nor clock nor disk nor environment."""
    pure = [
        "attestation.verifier",
        "attestation.service_checks",
        "attestation.transcript",
        "attestation.verdict",
        "attestation.policy",
        "attestation.purchase",
        "attestation.report",
        "attestation.receipt",
        "attestation.keyset",
        "attestation.bundle",
        "attestation.onchain",
        "attestation.payment_proof",
        "attestation.encoding",
        "attestation.event_stream",
        *EVIDENCE_FORMATS,
    ]
    impure = {
        "httpx",
        "web3",
        "time",
        "os",
        "socket",
        "subprocess",
        "asyncio",
        "pathlib",
        "random",
        "secrets",
        "requests",
    }
    assert {name: top(IMPORTS[name]) & impure for name in pure if top(IMPORTS[name]) & impure} == {}


def test_evidence_formats_import_no_provider() -> None:
    assert EVIDENCE_FORMATS
    assert not [
        name for name in EVIDENCE_FORMATS if any(found.startswith("attestation.enclave") for found in IMPORTS[name])
    ]


def test_the_environment_is_read_in_settings_and_command_lines_only() -> None:
    allowed = {"service.settings", "service.cli", "attestation.buyer_cli", "attestation.account"}
    readers = set()
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                readers.add(name)
    assert readers <= allowed


def test_every_import_is_of_this_project_the_standard_library_or_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {"attestation": project["dependencies"], "service": project["optional-dependencies"]["service"]}
    # What a declared dependency brings and documents as part of its own interface.
    brought = {
        "aiohttp": "web3",
        "eth_keys": "eth-account",
        "eth_typing": "web3",
        "eth_utils": "eth-account",
        "hexbytes": "web3",
        "pydantic_core": "pydantic",
        "requests": "web3",
        "starlette": "fastapi",
    }
    declared: dict[str, set[str]] = {}
    for group, entries in groups.items():
        names = {entry.split("[")[0].split(">")[0].split("=")[0].strip().replace("-", "_").lower() for entry in entries}
        declared[group] = names
    declared["service"] |= declared["attestation"]
    for name, found in IMPORTS.items():
        group = name.partition(".")[0]
        for imported in top(found) - set(sys.stdlib_module_names) - set(PACKAGES):
            owner = brought.get(imported, imported).replace("-", "_").lower()
            assert owner in declared[group], f"{name} imports {imported}, which is not declared"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_stay_small_enough_to_read(name: str) -> None:
    assert len(MODULES[name].read_text("utf-8").splitlines()) <= 500
