"""Pieces of the page. Every text that comes from a run goes through :func:`text`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["COLOURS", "Html", "bytes_text", "details", "document", "duration", "facts", "number", "table", "text"]

COLOURS = ("#1f6feb", "#d9480f", "#1a7f37", "#8250df", "#6b7280", "#b7791f", "#0e7490", "#be185d")
"""Of runs and series."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 1.5rem auto; padding: 0 1rem; color: #1f2328; }
h1 { font-size: 1.5rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #d0d7de; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; } .note { color: #57606a; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0 .8rem; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid #eaeef2; vertical-align: top; }
th { font-weight: 600; color: #57606a; } td { white-space: nowrap; } td.n, th.n { text-align: right; }
td.long { overflow-wrap: anywhere; min-width: 20ch; white-space: normal; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.ended { color: #1a7f37; } .running { color: #0e7490; } .failed { color: #c62828; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: .92rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; max-width: 31rem; } .timeline svg { max-width: 60rem; }
.timeline { min-width: 0; overflow-x: auto; } .timeline svg { min-width: 32rem; }
pre, .said { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit; }
blockquote { margin: .3rem 0 .8rem; padding: .1rem 0 .1rem .8rem; border-left: 3px solid #d0d7de; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: 0 1.5rem; }
.bar { display: flex; height: 1.1rem; border-radius: 3px; overflow: hidden; background: #eaeef2; max-width: 60rem; }
.bar span { min-width: 1px; } .legend span { white-space: nowrap; margin-right: 1.2em; }
.histogram { display: grid; grid-template-columns: max-content minmax(4rem, 22rem) max-content; gap: 1px .6rem;
  font-size: .85rem; align-items: center; font-variant-numeric: tabular-nums; }
.histogram i { background: #1f6feb; height: .7rem; border-radius: 2px; }
.bar, .bar span, .histogram i, .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.warning { border-left: 3px solid #b7791f; padding-left: .7rem; margin: .4rem 0; overflow-wrap: anywhere; }
details { margin: .4rem 0; } summary { cursor: pointer; color: #0550ae; }
@media print {
  body { margin: 0; max-width: none; font-size: 10.5pt; } .wide, .timeline { overflow: visible; }
  .plots { grid-template-columns: 1fr 1fr; } figure, tr, blockquote, .bar { break-inside: avoid; }
  h2, h3 { break-after: avoid; } details::details-content { content-visibility: visible; display: block; }
  .timeline svg { min-width: 0; }
}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser loads nothing from anywhere for this page, and runs nothing."""


def document(title: str, body: Sequence[str]) -> str:
    """Return a whole page."""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n"
        "</html>\n"
    )


def text(value: object) -> Html:
    """Return a value as text of the page: escaped, unless it is HTML already."""
    return value if isinstance(value, Html) else Html(escape(_shown(value)))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()) -> Html:
    """Return a table, which scrolls on its own where it is too wide.

    Args:
        heads: names of the columns.
        rows: values of the cells.
        numbers: columns that are aligned at the right.
    """
    head = "".join(f"<th{_kind(at in numbers)}>{text(name)}</th>" for at, name in enumerate(heads))
    body = "".join(f"<tr>{''.join(_cell(cell, at in numbers) for at, cell in enumerate(row))}</tr>" for row in rows)
    return Html(f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")


def facts(heads: Sequence[object], rows: Mapping[str, Sequence[object]]) -> Html:
    """Return a table with a name at the beginning of each row; a row that has nothing to say is left out."""
    head = "".join(f"<th>{text(name)}</th>" for name in ("", *heads)) if len(heads) > 1 else ""
    body = "".join(
        f"<tr><th>{text(name)}</th>{''.join('<td></td>' if cell is None else _cell(cell) for cell in cells)}</tr>"
        for name, cells in rows.items()
        if any(cell not in ("", None) for cell in cells)
    )
    return Html(f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")


def _cell(value: object, is_number: bool = False) -> str:
    """Long words, such as paths, are broken; short ones never, as a table scrolls where it is too wide."""
    made = text(value)
    return f"<td{_kind(is_number, is_long=len(made) > 24 and not isinstance(value, Html))}>{made}</td>"


def _kind(is_number: bool, is_long: bool = False) -> str:
    return " class='n'" if is_number else " class='long'" if is_long else ""


def details(summary: str, inside: str) -> Html:
    """Return a part of the page that is opened by a click, and in print is open."""
    return Html(f"<details><summary>{text(summary)}</summary>{inside}</details>")


def number(value: object) -> str:
    """Return a number as people write it, and anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _shown(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{value:,.0f}"
    size = abs(value)
    if not math.isfinite(value) or size < 1e-3 or size >= 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}" if size >= 10 else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Return a time in the two units that fit: ``1 h 5 min``, ``12 s``."""
    whole = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {below}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def bytes_text(size: float) -> str:
    """Return a size in GiB."""
    return f"{size / 2**30:.1f} GiB"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
