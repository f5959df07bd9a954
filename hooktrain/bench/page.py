"""Results as one self-contained HTML page, and a PNG for each plot."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from hooktrain.bench import tables
from hooktrain.bench.plots import as_png, as_svg, draw
from hooktrain.bench.results import Line, values

__all__ = ["write_page"]

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; }
h3 { font-size: 1rem; margin-bottom: .2rem; } p.about { color: #57606a; margin: 0; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #eaeef2; vertical-align: top; }
th { font-weight: 600; color: #57606a; } td.n, th.n { text-align: right; }
.note { color: #57606a; font-size: .9rem; margin: .1rem 0; } svg { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; } dt { color: #57606a; } dd { margin: 0; }
details { margin: .4rem 0; }
.wide { overflow-x: auto; }
""" + "\n".join(f".{name} {{ color: {value}; }}" for name, value in tables.HEX.items())


def write_page(lines: Sequence[Line], folder: Path) -> Path:
    """Write ``index.html``, and ``SUITE.png`` for each suite (``SUITE-2.png`` and so on for its other plots).

    Args:
        lines: lines of results.
        folder: folder, which is made if it is missing.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for suite in dict.fromkeys(line["suite"] for line in lines):
        own = [line for line in lines if line["suite"] == suite]
        parts.append(f"<h2>{escape(suite)}</h2>")
        for at, figure in enumerate(draw(own)):
            name = f"{suite}.png" if at == 0 else f"{suite}-{at + 1}.png"
            (folder / name).write_bytes(as_png(figure))
            parts.append(f"<div>{as_svg(figure)}</div>")
        parts += [_case(line) for line in own]
    body = "\n".join([_head(lines), *parts])
    page = folder / "index.html"
    page.write_text(
        f"<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>\n<title>Benchmarks</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
        encoding="utf-8",
    )
    return page


def _head(lines: Sequence[Line]) -> str:
    last = lines[-1]
    machine = last["machine"]
    facts = {
        "measured": last["date"].replace("T", " ").replace("+00:00", " UTC"),
        "commit": (last["commit"][:12] or "none") + (", with changes" if last["changed"] else ""),
        "processor": f"{machine['processor']}, {machine['cores']} cores used, {machine['memory_gib']} GiB",
        "GPU": ", ".join(machine["gpus"]) or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in last["versions"].items()),
    }
    if last["settings"]["quick"]:
        facts["quick"] = "this measurement only shows that everything works"
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<h1>Benchmarks</h1>\n<dl>{items}</dl>"


def _case(line: Line) -> str:
    chosen = tables.parameters_text(line)
    parts = [f"<h3>{escape(line['case'])}{escape(f' ({chosen})') if chosen else ''}</h3>"]
    if line["about"]:
        parts.append(f"<p class='about'>{escape(line['about'])}</p>")
    shown = tables.shown_metrics(line)
    rows = []
    for variant, facts in line["variants"].items():
        cells = [_cell(tables.median_text(line, variant, metric), "n") for metric in shown]
        rows.append([_cell(tables.label_of(line, variant)), *cells, _cell(facts.get("error", ""))])
    parts.append(_table(["variant", *(f"n:{metric['name']}" for metric in shown), ""], rows))
    if line["comparisons"]:
        rows = [
            [
                _cell(tables.name_of(each)),
                _cell(each["metric"]),
                _cell(tables.figure_text(each), "n"),
                _cell(each["limit"]),
                _cell(tables.verdict_text(each), tables.COLOURS.get(each["verdict"], "")),
            ]
            for each in line["comparisons"]
        ]
        parts.append(_table(["compared", "metric", "n:figure (95%)", "target", "verdict"], rows))
    parts += [f"<p class='note'>{escape(note)}</p>" for note in tables.notes_of(line["comparisons"])]
    parts.append(_runs(line, shown))
    return "\n".join(parts)


def _runs(line: Line, shown: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            _cell(variant),
            _cell(metric["name"]),
            _cell(", ".join(f"{value:.6g}" for value in found)),
            _cell(metric["unit"]),
        ]
        for variant in line["variants"]
        for metric in shown
        if (found := values(line, variant, metric["name"]))
    ]
    table = _table(["variant", "metric", "runs", ""], rows)
    return f"<details><summary>{line['settings']['runs_per_variant']} runs of each variant</summary>{table}</details>"


def _cell(text: str, kind: str = "") -> str:
    return f"<td class='{kind}'>{escape(text)}</td>" if kind else f"<td>{escape(text)}</td>"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(
        f"<th class='n'>{escape(n[2:])}</th>" if n.startswith("n:") else f"<th>{escape(n)}</th>" for n in names
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
