"""The manifest names every source file, and any difference shows."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from attestation.errors import MalformedError, ManifestError
from attestation.manifest import check_pinned, differences, hash_sources, manifest_digest, parse_manifest
from service.build import group_of
from tests.fuzz import changed
from tests.purchases import manifest_document


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "attestation"
    (root / "sub" / "__pycache__").mkdir(parents=True)
    (root / "a.py").write_text("a = 1\n")
    (root / "sub" / "b.json").write_text("{}")
    (root / "sub" / "__pycache__" / "a.pyc").write_bytes(b"derived")
    return root


def test_every_file_is_hashed_but_byte_code(package: Path) -> None:
    hashed = hash_sources({"attestation": package}, group_of)
    assert set(hashed["attestation"]) == {"attestation/a.py", "attestation/sub/b.json"}


def test_a_changed_a_new_and_a_removed_file_change_the_digest(package: Path) -> None:
    def digest() -> str:
        return manifest_digest(manifest_document(source=hash_sources({"attestation": package}, group_of)))

    seen = {digest()}
    (package / "a.py").write_text("a = 2\n")
    seen.add(digest())
    (package / "c.py").write_text("")
    seen.add(digest())
    (package / "a.py").unlink()
    seen.add(digest())
    assert len(seen) == 4


def test_sources_are_grouped_by_what_they_decide() -> None:
    assert group_of("service/payment/ledger.py") == "payment"
    assert group_of("service/call.py") == "payment"
    assert group_of("service/inference/summary.py") == "inference"
    assert group_of("service/http/paid.py") == "http"
    assert group_of("service/boot.py") == "http"
    assert group_of("attestation/verifier.py") == "attestation"


def test_another_build_than_the_pinned_one_is_refused() -> None:
    digest = manifest_digest(manifest_document())
    check_pinned(digest, None)
    check_pinned(digest, digest)
    with pytest.raises(ManifestError, match="pinned"):
        check_pinned(digest, "sha256:" + "0" * 64)


def test_differences_are_named_by_path() -> None:
    expected, actual = manifest_document(), manifest_document(tee="tdx")
    actual["model"] = {"name": "other", "added": 1}
    lines = list(differences(expected, actual))
    assert "! tee: expected 'simulated', is 'tdx'" in lines
    assert "+ model.added" in lines
    assert "- model.weights_sha256" in lines
    assert list(differences(expected, expected)) == []


HASH = "1" * 64
SOURCE: dict[str, Any] = {"commit": None, "lock_sha256": None, "files": {"attestation": {"attestation/a.py": HASH}}}


def test_a_source_without_a_commit_or_a_lock_is_still_one() -> None:
    assert parse_manifest(manifest_document(source=SOURCE))["source"] == SOURCE


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "tollseal.manifest/2"},
        {"model": []},
        {"more": 1},
        {"source": {}},
        {"source": {**SOURCE, "more": 1}},
        {"source": {**SOURCE, "commit": 1}},
        {"source": {**SOURCE, "lock_sha256": "abc"}},
        {"source": {**SOURCE, "files": {}}},
        {"source": {**SOURCE, "files": {"attestation": {}}}},
        {"source": {**SOURCE, "files": {"attestation": ["attestation/a.py"]}}},
        {"source": {**SOURCE, "files": {"attestation": {"attestation/a.py": "abc"}}}},
    ],
)
def test_a_manifest_of_another_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(MalformedError):
        parse_manifest(manifest_document(**change))


def test_a_file_that_cannot_be_read_stops_the_count(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", unreadable)
    with pytest.raises(ManifestError, match=r"attestation/a\.py cannot be hashed: Permission denied"):
        hash_sources({"attestation": package}, group_of)


@settings(max_examples=100, deadline=None)
@given(changed(manifest_document()))
def test_a_manifest_is_taken_as_it_is_or_is_malformed(value: Any) -> None:
    try:
        manifest = parse_manifest(value)
    except MalformedError:
        return
    assert manifest == value
