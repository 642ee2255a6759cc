"""The build manifest of this service: from what is on disk, loaded and configured."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import service
from attestation.digest import file_sha256
from attestation.errors import ManifestError
from attestation.manifest import build_manifest, hash_sources
from service.inference.backend import ModelIdentity
from service.inference.summary import generation_json, template_hashes
from service.payment.terms import as_json, requirements_for
from service.pricing import Price, prices_for
from service.settings import Settings

_GROUPS: Final = (
    ("attestation/", "attestation"),
    ("service/payment/", "payment"),
    ("service/pricing.py", "payment"),
    ("service/call.py", "payment"),
    ("service/inference/", "inference"),
)


def group_of(path: str) -> str:
    """Which group of the manifest a source file belongs to; what serves and starts the service is `http`."""
    return next((group for prefix, group in _GROUPS if path.startswith(prefix)), "http")


def compute_manifest(
    settings: Settings, model: ModelIdentity, *, tee_type: str, source: Path | None = None
) -> dict[str, Any]:
    """The manifest of what runs here with these settings.

    Args:
        settings: the service's settings.
        model: the model as the backend identified it; embedded weights have been hashed.
        tee_type: the enclave's.
        source: the checkout to hash; the one that is running when None.

    Raises:
        ManifestError: a source file cannot be read.
    """
    return build_manifest(
        **source_members(source or checkout(), commit=settings.source_commit),
        image_digest=settings.image_digest,
        model={**model.to_json(), "generation": generation_json()},
        prompts=template_hashes(),
        payment=payment_terms(settings),
        tee=tee_type,
    )


def audit_manifest(served: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The manifest that a service would have, were it built from a checkout and otherwise what it says it is.

    Args:
        served: the manifest that the service shows: for the terms and the model, which no checkout tells.
        source: the checkout to hash. Prompts and generation parameters are those of this installation.

    Raises:
        ManifestError: a source file cannot be read, or `source` is no checkout.
    """
    rest = {name: served[name] for name in ("image_digest", "payment", "tee")}
    model = {**served["model"], "generation": generation_json()}
    return build_manifest(**source_members(source), model=model, prompts=template_hashes(), **rest)


def source_members(source: Path, *, commit: str | None = None) -> dict[str, Any]:
    """What a manifest says of a checkout: its commit, its lock file and every file of its packages.

    Raises:
        ManifestError: a file cannot be read, or a package is not there.
    """
    packages = {name: source / name for name in ("attestation", "service")}
    for name, directory in packages.items():
        if not directory.is_dir():
            raise ManifestError(f"{source} holds no package {name}")
    lock = source / "uv.lock"
    return {
        "commit": commit or _checkout_commit(source),
        "lock_sha256": file_sha256(lock) if lock.is_file() else None,
        "files": hash_sources(packages, group_of),
    }


def checkout() -> Path:
    """The directory that holds the running packages."""
    return _directory(service.__file__).parent


def offered_prices(
    settings: Settings, *, endpoint: str, input_tokens: int, max_output_tokens: int
) -> tuple[Price, ...]:
    """What a call of an endpoint with so many tokens costs, in every accepted asset."""
    return prices_for(
        settings.price_rule(endpoint),
        settings.payees,
        input_tokens=input_tokens,
        max_output_tokens=max_output_tokens,
        max_timeout_seconds=settings.payment_timeout_seconds,
    )


def payment_terms(settings: Settings) -> dict[str, Any]:
    """The terms of this build, as they stand in its manifest; docs/formats.md describes them."""
    prices = offered_prices(settings, endpoint="", input_tokens=0, max_output_tokens=0)
    accepts = [as_json(requirements_for(price)) for price in prices]
    own = {endpoint: settings.price_rule(endpoint) for endpoint in settings.price_rules}
    return {
        "accepts": [
            {
                **{name: accept[name] for name in ("scheme", "network", "asset", "payTo")},
                # One amount for whatever is asked, or what a rule needs to compute one.
                **({"decimals": price.asset.decimals} if own else {"amount": accept["amount"]}),
            }
            for accept, price in zip(accepts, prices, strict=True)
        ],
        "price_rule": settings.price_rule().to_json(),
        "price_rules": {endpoint: rule.to_json() for endpoint, rule in own.items()},
        "facilitators": {option.network: list(option.facilitator) for option in settings.payment_options},
        "settle": settings.settle,
        "settlement_depth": settings.settlement_depth,
    }


def _directory(module_file: str | None) -> Path:
    if module_file is None:
        raise RuntimeError("a package of this distribution has no file")
    return Path(module_file).resolve().parent


def _checkout_commit(root: Path) -> str | None:
    """The commit of the checkout that the packages lie in, or None when they do not lie in one."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git made the checkout
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
