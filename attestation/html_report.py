"""The verdict as one HTML page that draws the chain from the answer's bytes to hardware and chain.

Self-contained: no script, no font, no image, nothing fetched. Every text that comes from elsewhere is escaped.
"""

from collections.abc import Sequence
from html import escape
from typing import Final

from attestation.terminal import MEANINGS, printable
from attestation.verdict import Check, Result, Status, Verdict

LINKS: Final[Sequence[tuple[str, frozenset[str]]]] = (
    ("answer bytes", frozenset({"bundle.format", "answer.signature", "receipt.response"})),
    ("receipt", frozenset({"receipt.signature", "receipt.request", "receipt.build"})),
    ("attested keyset", frozenset({"keyset.binding", "keyset.lifetime", "channel.tls"})),
    ("TEE evidence", frozenset({"evidence.genuine", "evidence.policy"})),
    ("build", frozenset({"build.manifest", "registry.manifest"})),
    ("agent on chain", frozenset({"registry.agent", "registry.key"})),
)
"""The chain of proof, and the checks that make each link."""

PAYMENT: Final = (
    "payment",
    frozenset({"offer.signature", "receipt.payment", "payment.receipt", "payment.onchain"}),
)
"""The branch that hangs on the receipt."""

CONTENT_SECURITY_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
"""Nothing is fetched and nothing runs, whatever a page's texts contain."""

_CLASSES: Final = {Status.PASS: "pass", Status.FAIL: "fail", Status.NOT_VERIFIED: "open"}
_RESULT_CLASSES: Final = {
    Result.VERIFIED: "pass",
    Result.FAILED: "fail",
    Result.SIMULATED: "open",
    Result.INCOMPLETE: "open",
}

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.4rem; } h1 b { padding: .1em .5em; border-radius: .3em; }
.chain { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem; margin: 1.5rem 0 .5rem; }
.link { border: 2px solid; border-radius: .5rem; padding: .4rem .8rem; background: #fff; }
.branch { margin: 0 0 1.5rem 8rem; }
.pass { color: #0a6b2d; border-color: #0a6b2d; } .fail { color: #fff; background: #b00020; border-color: #b00020; }
.open { color: #7a5200; border-color: #c98a00; border-style: dashed; }
h1 b.pass { background: #d9f2e1; } h1 b.open { background: #fff0cc; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid #ddd; padding: .3rem .6rem; vertical-align: top; }
td:nth-child(2) { font-family: ui-monospace, monospace; white-space: nowrap; }
td:nth-child(3) { overflow-wrap: anywhere; }
td:first-child { white-space: nowrap; } td.fail { font-weight: bold; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #eee; } .link { background: #222; }
.pass { color: #6fd08c; border-color: #6fd08c; } .open { color: #f0c060; } td { border-color: #444; } }
"""


def render(verdict: Verdict) -> str:
    """The page, complete, as text."""
    by_id = {check.id: check for check in verdict.checks}
    chain = ' <span aria-hidden="true">&#8592;</span> '.join(_link(name, ids, by_id) for name, ids in LINKS)
    rows = "\n".join(_row(check) for check in verdict.checks)
    word = verdict.result.value
    return page(
        f"{word}: proof of an answer",
        f"""<h1><b class="{_RESULT_CLASSES[verdict.result]}">{word}</b> {escape(MEANINGS[verdict.result])}</h1>
<div class="chain">{chain}</div>
<div class="branch">&#8627; {_link(*PAYMENT, by_id)}</div>
<table>
{rows}
</table>""",
    )


def page(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML already; `title` is text."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _link(name: str, ids: frozenset[str], by_id: dict[str, Check]) -> str:
    """A link is as good as its worst check; one without any check that ran is open."""
    statuses = {by_id[check_id].status for check_id in ids if check_id in by_id}
    worst = next((s for s in (Status.FAIL, Status.NOT_VERIFIED, Status.PASS) if s in statuses), Status.NOT_VERIFIED)
    return f'<span class="link {_CLASSES[worst]}" title="{worst.value}">{escape(name)}</span>'


def _row(check: Check) -> str:
    style = _CLASSES[check.status]
    detail = escape(printable(check.detail))
    return f'<tr><td class="{style}">{check.status.value}</td><td>{escape(check.id)}</td><td>{detail}</td></tr>'
