"""One text for every byte string: what decodes is written back as it was read."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestation import encoding
from attestation.digest import CanonicalizationError, file_sha256, jcs, sha256_hex
from attestation.errors import MalformedError


@given(st.binary(max_size=100))
def test_base64_and_hex_round_trip(data: bytes) -> None:
    assert encoding.b64_bytes(encoding.b64(data), "x") == data
    assert encoding.b64url_bytes(encoding.b64url(data), "x") == data
    assert encoding.hex_bytes(data.hex(), "x") == data
    assert encoding.prefixed_hex_bytes("0x" + data.hex(), "x") == data


@given(st.text(max_size=40))
@example("")
@example("0")
@example("\N{SNOWMAN}")
@example("QR==")
@example("QQ")
@example("AB")
def test_a_text_that_decodes_is_the_only_text_of_its_bytes(text: str) -> None:
    for decode, encode in (
        (encoding.b64_bytes, encoding.b64),
        (encoding.b64url_bytes, encoding.b64url),
        (encoding.hex_bytes, bytes.hex),
    ):
        try:
            data = decode(text, "x")
        except MalformedError:
            continue
        assert encode(data) == text


def test_stray_bits_at_the_end_of_base64_are_refused() -> None:
    assert base64.b64decode("QR==") == base64.b64decode("QQ==")
    with pytest.raises(MalformedError, match="canonical"):
        encoding.b64_bytes("QR==", "x")


@pytest.mark.parametrize("text", ["AA", "a", "0xaa", " aa", "zz", "aa\n"])
def test_hex_is_lower_case_without_a_prefix(text: str) -> None:
    with pytest.raises(MalformedError):
        encoding.hex_bytes(text, "x")


def test_an_exact_address_is_lower_case_or_checksummed() -> None:
    checksummed = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
    assert encoding.exact_address(checksummed, "x") == checksummed.lower()
    assert encoding.exact_address(checksummed.lower(), "x") == checksummed.lower()
    for changed in (checksummed.replace("C", "c", 1), checksummed.upper(), checksummed[:-1]):
        with pytest.raises(MalformedError):
            encoding.exact_address(changed, "x")


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":2}', '{"a":{"b":1,"b":1}}', "NaN", "[Infinity]", "1e400", "[-1e999]", "{", "", '"\\ud800']
)
def test_json_that_two_readers_could_understand_differently_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        encoding.parse_json(text, "x")


def test_numbers_are_read_as_they_are() -> None:
    numbers = encoding.parse_json(
        "[0, -7, 1.5e3, 0.25, 115792089237316195423570985008687907853269984665640564039457]", "x"
    )
    assert numbers == [0, -7, 1500.0, 0.25, 115792089237316195423570985008687907853269984665640564039457]
    assert [type(number) for number in numbers] == [int, int, float, float, int]


def test_json_nested_beyond_the_limit_is_refused_however_deep() -> None:
    fits = "[" * encoding.MAX_JSON_DEPTH + "]" * encoding.MAX_JSON_DEPTH
    assert encoding.parse_json(fits, "x") is not None
    for depth in (encoding.MAX_JSON_DEPTH + 1, 100_000):
        with pytest.raises(MalformedError):
            encoding.parse_json("[" * depth + "]" * depth, "x")


def test_bytes_that_are_not_utf8_are_not_json() -> None:
    with pytest.raises(MalformedError, match="UTF-8"):
        encoding.parse_json(b'"\xff"', "x")


@given(st.integers(min_value=0, max_value=2**256 - 1))
def test_amounts_are_exact_up_to_uint256(amount: int) -> None:
    assert encoding.decimal_text(str(amount), "x") == amount


@pytest.mark.parametrize("text", ["", "01", "-1", "+1", "1.0", "1e3", " 1", "٣", str(2**256), 1, None, True])
def test_amounts_in_any_other_spelling_are_refused(text: object) -> None:
    with pytest.raises(MalformedError):
        encoding.decimal_text(text, "x")


def test_a_boolean_is_not_an_integer() -> None:
    with pytest.raises(MalformedError):
        encoding.integer(True, "x")


@pytest.mark.parametrize("value", [{1: "a"}, float("nan"), 2**60, "\ud800"])
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(CanonicalizationError):
        jcs(value)


def test_a_file_is_hashed_in_full_and_its_progress_told(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192
    file = tmp_path / "weights"
    file.write_bytes(content)
    told: list[int] = []
    assert file_sha256(file, told.append) == file_sha256(file) == sha256_hex(content)
    assert (sum(told), len(told) > 1) == (len(content), True)


@pytest.mark.parametrize("value", [None, "", "aa", "0X00", "0xAA", "0xa", 1, b"0x00"])
def test_prefixed_hex_has_its_prefix_and_lower_case(value: object) -> None:
    with pytest.raises(MalformedError):
        encoding.prefixed_hex_bytes(value, "x")


def test_canonical_json_sorts_names_and_leaves_no_space() -> None:
    assert jcs(json.loads('{"b": 1, "a": [true, null, "é"]}')) == '{"a":[true,null,"é"],"b":1}'.encode()
