"""Pieces of self-contained pages: no script, nothing from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2329; background: #fff; margin: 2rem auto;
  max-width: 78rem; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p, ul { margin: .3rem 0 .6rem; max-width: 62rem; } .quiet { color: #5c6670; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .22rem .7rem .22rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td { font-variant-numeric: tabular-nums; }
thead th { border-bottom: 1px solid #aab3bb; font-weight: 600; vertical-align: bottom; }
tbody tr.own td { font-weight: 600; } tbody tr.last td { border-bottom: 1px solid #d5dade; }
tbody tr:hover td { background: #f3f6f8; } td.text { text-align: left; white-space: normal; }
.failed td { color: #a02020; } figure { margin: .4rem 0 1.4rem; } img { max-width: 100%; height: auto; }
figcaption { margin-bottom: .3rem; } code { font-size: .86rem; } summary { cursor: pointer; }
.grid { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; } .grid figure { margin: 0; max-width: 36rem; }
"""


def table(header: Sequence[str], body: Sequence[str]) -> str:
    """A table of a header and finished rows."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def line(cells: Sequence[str], kind: str = "") -> str:
    """A row of texts."""
    inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr class="{kind}">{inner}</tr>' if kind else f"<tr>{inner}</tr>"


def failed_line(name: str, reason: str, columns: int) -> str:
    """A row that has a reason instead of numbers."""
    return (
        f'<tr class="failed"><td>{html.escape(name)}</td>'
        f'<td class="text" colspan="{columns - 1}">{html.escape(reason)}</td></tr>'
    )


def figure(name: str, said: str, picture: bytes) -> str:
    """A PNG inside the page, with what is said of it above."""
    encoded = base64.b64encode(picture).decode()
    return (
        f"<figure><figcaption><b>{html.escape(name)}</b> <span class='quiet'>{html.escape(said)}</span>"
        f'</figcaption><img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}"></figure>'
    )


def document(title: str, body: Sequence[str]) -> str:
    """The whole page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )
