"""The page of ``/agent``, drawn from its JSON document.

Self-contained: no script, no font, no image, nothing fetched. The owner of the agent, its validators and whoever rates
it wrote much of what stands here: every text is escaped, and nothing but an https address becomes a link.
"""

import datetime
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

from attestation.html_report import page
from attestation.terminal import printable

_MAX_TEXT: Final = 300


def render(document: Mapping[str, Any]) -> str:
    """The page, complete, as text."""
    chain, serves = document["chain"], document["serves"]
    name = document["agent"] or "without an entry on the chain"
    parts = [f"<h1>Agent <code>{_text(name)}</code></h1>", _state(document)]
    parts.append(_table("What it serves", _serves(serves)))
    if chain["reachable"]:
        parts += [
            _table("What the chain says", _identity(chain)),
            _table("Keys on the chain", [_key(one) for one in chain["keys"]] or [("none", "", "")]),
            _validations(chain["validations"]),
            _ratings(chain["ratings"]),
        ]
    parts.append(f"<p>As of {_time(document['as_of'])}.</p>")
    return page(f"Agent {name}", "\n".join(parts))


def _state(document: Mapping[str, Any]) -> str:
    chain, agrees = document["chain"], document["agrees"]
    boxes = []
    if not chain["reachable"]:
        boxes.append(_box("open", f"not compared: {chain['reason']}"))
    else:
        for name, what in (("manifest", "build"), ("key", "key")):
            words = "is the one on the chain" if agrees[name] else "IS NOT the one on the chain"
            boxes.append(_box("pass" if agrees[name] else "fail", f"the {what} it serves {words}"))
    if not document["serves"]["hardware"]:
        boxes.append(_box("open", "simulated enclave: no hardware stands behind its keys"))
    return f'<div class="chain">{"".join(boxes)}</div>'


def _serves(serves: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    links = " &middot; ".join(f'<a href="{escape(path)}">{_text(name)}</a>' for name, path in serves["links"].items())
    return [
        ("build", _text(serves["manifest_digest"])),
        ("keyset", _text(serves["keyset_digest"])),
        ("payment key", f"{_text(serves['payment_key'])} until {_time(serves['expires_at'])}"),
        ("enclave", _text(serves["tee_type"])),
        *(("is paid at", f"{_text(one['pay_to'])} on {_text(one['network'])}") for one in serves["is_paid"]),
        ("documents", links),
    ]


def _identity(chain: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    stale = " (written before the agent was sold: not believed)" if chain["manifest"]["stale"] else ""
    return [
        ("block", _text(chain["block"])),
        ("owner", _text(chain["owner"])),
        ("wallet", _text(chain["wallet"] or "none")),
        ("registration file", _link(chain["uri"])),
        ("build", _text(chain["manifest"]["digest"] or "none") + stale),
    ]


def _key(one: Mapping[str, Any]) -> tuple[str, ...]:
    if one["payment_key"] is None:
        return (_text(one["slot"]), "cleared", "")
    state = "written before the agent was sold: not believed" if one["stale"] else f"until {_time(one['expires_at'])}"
    return (_text(one["slot"]), _text(one["payment_key"]), f"{_text(one['keyset_digest'])}, {state}")


def _validations(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return _table("Validations", [("none", "this chain has no validation registry")])
    said = found["standing"]
    head = (
        f"by trusted validators: {said['passed']} passed, {said['failed']} failed, {said['pending']} pending; "
        f"{said['simulated']} about simulated enclaves"
    )
    rows = [
        (
            "pending" if one["response"] is None else f"{_text(one['response'])} {_text(one['tag'])}",
            f"{_text(one['validator'])} ({'trusted' if one['trusted'] else 'not trusted here'})",
            _link(one["evidence_uri"] or ""),
        )
        for one in found["list"]
    ]
    return _table("Validations", [("standing", _text(head)), *rows])


def _ratings(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return _table("Ratings", [("none", "this chain has no reputation registry")])
    rows: list[tuple[str, ...]] = [
        (name, f"{_text(found[key]['count'])} ratings, mean {_text(found[key]['mean'] or 'none')}")
        for name, key in (("paid for", "paid"), ("all", "all"))
    ]
    for one in found["list"]:
        state = "revoked" if one["revoked"] else "paid" if one["paid"] else "unpaid"
        about = " ".join(filter(None, (one["tag1"], one["tag2"])))
        rows.append((f"{state} {_text(one['value'])}", _text(one["client"]), f"{_text(about)} {_text(one['reason'])}"))
    return _table("Ratings", rows)


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> str:
    """A heading and a table; cells are HTML already."""
    lines = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2>\n<table>\n{lines}\n</table>"


def _box(style: str, words: str) -> str:
    return f'<span class="link {style}">{_text(words)}</span> '


def _text(value: object) -> str:
    """Any value as safe HTML, without control characters and not endless."""
    text = printable(str(value))
    return escape(text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…")


def _link(uri: str) -> str:
    """A link where it is an https address, the text of anything else."""
    safe = uri.startswith("https://") and uri.isascii() and uri.isprintable() and len(uri) <= _MAX_TEXT
    return f'<a rel="noopener noreferrer nofollow" href="{escape(uri)}">{_text(uri)}</a>' if safe else _text(uri)


def _time(unix: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(unix, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return _text(unix)
