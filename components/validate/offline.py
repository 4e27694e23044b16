"""Data docs without a network: nothing is loaded from elsewhere.

Great Expectations' pages fetch style sheets and scripts from half a dozen hosts, and its index is empty
without them. The pages get one style sheet of their own, and the index is written here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REMOTE = re.compile(
    r'<script[^>]*\ssrc="https?://[^>]*>\s*</script>'
    r'|<link[^>]*\shref="https?://[^>]*>'
    r'|<img[^>]*\ssrc="https?://[^>]*>'
    r"|background: url\('https?://[^;]*;"
    r"|<footer>.*?</footer>",
    re.DOTALL,
)
STYLE = (Path(__file__).parent / "offline.css").read_text("utf-8")
INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Validation</title><style>
{style}</style></head>
<body><div class="container"><h1>Validation</h1>
<p>{summary} <a href="{refused_file}">{refused}</a>.</p>
<table><tr><th>Suite</th><th>Status</th><th>Expectations met</th><th>Suite as text</th></tr>
{rows}
</table></div></body></html>
"""


@dataclass(frozen=True)
class Outcome:
    """How many expectations of a suite were met."""

    suite: str
    met: int
    total: int


def make_self_contained(folder: Path, outcomes: Iterable[Outcome], refused: str, refused_file: str) -> None:
    """Rewrite every page of the site, and make `folder/index.html` a list of the suites that ran.

    It links to `refused_file`, in words `refused`.
    """
    for page in folder.rglob("*.html"):
        text = REMOTE.sub("", page.read_text("utf-8"))
        page.write_text(text.replace("</head>", f"<style>\n{STYLE}</style>\n</head>", 1), "utf-8")
    outcomes = list(outcomes)
    failed = sum(outcome.total - outcome.met for outcome in outcomes)
    summary = f"{failed} of {sum(outcome.total for outcome in outcomes)} expectations are not met."
    rows = "\n".join(_row(folder, outcome) for outcome in outcomes)
    index = INDEX.format(
        style=STYLE, summary=summary, rows=rows, refused=html.escape(refused), refused_file=refused_file
    )
    (folder / "index.html").write_text(index, "utf-8")


def _row(folder: Path, outcome: Outcome) -> str:
    name = html.escape(outcome.suite)
    pages = sorted((folder / "validations" / outcome.suite).rglob("*.html"))
    result = f'<a href="{pages[-1].relative_to(folder)}">{name}</a>' if pages else name
    good = outcome.met == outcome.total
    status = f'<td class="text-{"success" if good else "danger"}">{"met" if good else "failed"}</td>'
    suite = f'<a href="expectations/{name}.html">expectations</a>'
    return f"<tr><td>{result}</td>{status}<td>{outcome.met} of {outcome.total}</td><td>{suite}</td></tr>"
