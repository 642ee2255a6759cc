"""Canonical JSON is what RFC 8785 says, whichever way it is made."""

from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from attestation.digest import CanonicalizationError, jcs

leaves = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**54), max_value=2**54)
    | st.floats()
    | st.text()
    | st.text("\x00\x08\t\n\x0b\x0c\r\x1f\"\\/\x7f\x80\u2028\ud800\ufb33\U0001f600<>&'")
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.dictionaries(st.text("az.-_19"), inner),
    max_leaves=12,
)


def reference(value: Any) -> bytes | None:
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return None


@given(value=values)
def test_the_canonical_form_is_the_reference_implementations(value: Any) -> None:
    expected = reference(value)
    if expected is None:
        with pytest.raises(CanonicalizationError):
            jcs(value)
    else:
        assert jcs(value) == expected


@pytest.mark.parametrize("edge", [2**53 - 1, 2**53, -(2**53) + 1, -(2**53), 2**60])
def test_integers_that_json_readers_cannot_hold_have_no_form(edge: int) -> None:
    expected = reference({"n": edge})
    if expected is None:
        with pytest.raises(CanonicalizationError):
            jcs({"n": edge})
    else:
        assert jcs({"n": edge}) == expected


@pytest.mark.parametrize("value", [{1: "a"}, {"a": {None: 1}}, [b"bytes"], object()])
def test_what_is_no_json_has_no_form(value: Any) -> None:
    with pytest.raises((CanonicalizationError, TypeError, AttributeError)):
        jcs(value)


def test_keys_are_sorted_by_utf_16_code_units() -> None:
    assert jcs({"\U0001f600": 1, "\ufb33": 2, "a": 3}) == '{"a":3,"\U0001f600":1,"\ufb33":2}'.encode()
