"""Adversarial JSON: any value at all, and honest documents in which one place was changed."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**53, 2**64, 2**256, 1.5, "", "0x", "00", "sha256:", "0"])
    | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield node, key
        yield from _places(child)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """The document with one value replaced, taken away or put beside another; or another document altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(json_values)
    copied = copy.deepcopy(document)
    parent, key = draw(st.sampled_from(list(_places(copied))))
    kind = draw(st.sampled_from(["replace", "remove", "add"]))
    if kind == "replace":
        parent[key] = draw(json_values)
    elif kind == "remove":
        del parent[key]
    elif isinstance(parent, dict):
        parent[draw(st.text(max_size=8))] = draw(json_values)
    else:
        parent.append(draw(json_values))
    return copied
