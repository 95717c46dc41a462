"""The report as one HTML page that needs nothing else and no network: counts, examples, plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from luthier.base import webpage
from luthier.base.records import Json
from luthier.prepare.report import MOST_LISTED, Chart, Finished, Table

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 200, 56, 34
_LETTER = 6  # as wide as one under a bar
_UNFOLDED = 3
"""Things counted whose examples lie open; of more, each is opened by whoever wants to see it."""
_STEERING = (*range(9), *range(11, 32), 0x7F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROL = dict.fromkeys(_STEERING, "\ufffd")
"""Characters that would steer the page's text are shown as damage."""


def page(steps: Sequence[Finished], title: str) -> str:
    """One section for each step: what was read and written, counts with examples, tables, plots."""
    sections = [_section(step, number, len(steps)) for number, step in enumerate(steps, 1)]
    return webpage.page(_safe(title), [f"<h1>{_safe(title)}</h1>", *sections], _STYLE)


def _section(step: Finished, number: int, many: int) -> str:
    name = f"{number}. {step.verb}" if many > 1 else step.verb
    report, facts = step.report, step.facts
    parts = [
        f"<h2>{_safe(name)}</h2>",
        f"<p class='from'>{_safe(', '.join(step.inputs))}</p>",
        _tiles(step.headline()),
        "".join(f"<p class='note'>{_safe(note)}</p>" for note in report.notes),
        *(_chart(chart) for chart in report.charts if len(chart.values)),
        *(_table(table) for table in report.tables if table.rows),
        _counted("What was counted", report.tally.counts, report.tally.examples),
        _counted("Rows that could not be used", facts.rejected, _by_code(facts.examples)),
        _counted("Faults and repairs of rows that were kept", facts.faulty.counts, facts.faulty.examples),
        _settings(step),
    ]
    return f"<section>{''.join(parts)}</section>"


def _tiles(numbers: Mapping[str, Json]) -> str:
    tiles = (f"<div><b>{_safe(_number(value))}</b>{_safe(name)}</div>" for name, value in numbers.items())
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _by_code(rows: Sequence[Mapping[str, Json]]) -> dict[str, list[Mapping[str, Json]]]:
    found: dict[str, list[Mapping[str, Json]]] = {}
    for row in rows:
        found.setdefault(str(row["code"]), []).append(row)
    return found


def _counted(title: str, counts: Mapping[str, int], examples: Mapping[str, Sequence[Mapping[str, Json]]]) -> str:
    """Each count with its examples below it."""
    if not counts and not examples:
        return ""
    lines: list[str] = []
    unfolded = " open" if len({*counts, *examples}) <= _UNFOLDED else ""
    for name in [*counts, *(name for name in examples if name not in counts)]:
        head = f"<b>{_safe(name)}</b>" + (f" {counts[name]:,}" if name in counts else "")
        shown = examples.get(name, ())
        if shown:
            inside = "".join(_example(row) for row in shown)
            lines.append(f"<details{unfolded}><summary>{head}</summary>{inside}</details>")
        else:
            lines.append(f"<p class='count'>{head}</p>")
    return f"<h3>{_safe(title)}</h3>{''.join(lines)}"


def _example(row: Mapping[str, Json]) -> str:
    rest = {name: value for name, value in row.items() if name not in ("file", "line") and value not in (None, "")}
    lines = (f"<tr><th>{_safe(name)}</th><td><pre>{_safe(value)}</pre></td></tr>" for name, value in rest.items())
    place = f"{_safe(row.get('file'))}:{_safe(row.get('line'))}"
    return f"<div class='example'><span>{place}</span><table>{''.join(lines)}</table></div>"


def _table(table: Table) -> str:
    counted = {name for row in table.rows for name, value in row.items() if _is_number(value)}
    head = "".join(f"<th{' class=number' if name in counted else ''}>{_safe(name)}</th>" for name in table.rows[0])
    rows = "".join(f"<tr>{''.join(_cell(value) for value in row.values())}</tr>" for row in table.rows[:MOST_LISTED])
    more = len(table.rows) - MOST_LISTED
    rest = f"<p class='note'>and {more:,} more rows, in the JSON report</p>" if more > 0 else ""
    return f"<h3>{_safe(table.title)}</h3><table class='data'><tr>{head}</tr>{rows}</table>{rest}"


def _cell(value: Json) -> str:
    shown = "" if value is None else _safe(_number(value))
    return f"<td{' class=number' if _is_number(value) else ''}>{shown}</td>"


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _chart(chart: Chart) -> str:
    """A chart as inline SVG; more bars than fit are drawn without labels in between."""
    values = [float(value) for value in chart.values]
    labels = [_number(label) for label in chart.labels]
    top = max([*values, 0.0]) or 1.0
    wide, high = _WIDTH - _LEFT - 8, _HEIGHT - _BOTTOM - 8
    step = wide / len(values)
    shapes: list[str] = []
    if chart.kind == "bars":
        for i, value in enumerate(values):
            tall = max(value / top * high, 0.0)
            box = f"x='{_LEFT + i * step + step * 0.08:.1f}' y='{8 + high - tall:.1f}'"
            size = f"width='{max(step * 0.84, 0.5):.1f}' height='{tall:.1f}'"
            shapes.append(f"<rect {box} {size}><title>{_safe(labels[i])}: {_number(chart.values[i])}</title></rect>")
    else:
        points = " ".join(
            f"{_LEFT + (i + 0.5) * step:.1f},{8 + high - v / top * high:.1f}" for i, v in enumerate(values)
        )
        shapes.append(f"<polyline points='{points}'/>")
    every = max(1, -(-len(values) // 12))
    most = max(4, min(12, int(every * step / _LETTER)))
    for i in range(0, len(values), every):
        text = labels[i] if len(labels[i]) <= most else labels[i][: most - 1] + "…"
        shapes.append(f"<text x='{_LEFT + (i + 0.5) * step:.1f}' y='{_HEIGHT - 18}' class='mid'>{_safe(text)}</text>")
    axis = (
        f"<line x1='{_LEFT}' x2='{_WIDTH - 8}' y1='{8 + high}' y2='{8 + high}'/>"
        f"<text x='{_LEFT - 6}' y='16' class='end'>{_safe(_number(top))}</text>"
        f"<text x='{_LEFT - 6}' y='{8 + high}' class='end'>0</text>"
        f"<text x='{_LEFT + wide / 2}' y='{_HEIGHT - 3}' class='mid axis'>{_safe(chart.x)}</text>"
    )
    name = f"{chart.title} ({chart.y})" if chart.y else chart.title
    return f"<h3>{_safe(name)}</h3><svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{axis}{''.join(shapes)}</svg>"


def _settings(step: Finished) -> str:
    rows = {**step.settings, "seed": step.seed, "luthier": step.version}
    cells = "".join(f"<tr><th>{_safe(name)}</th><td>{_safe(value)}</td></tr>" for name, value in rows.items())
    return f"<details class='settings'><summary>Settings</summary><table>{cells}</table></details>"


def _number(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _safe(text: object) -> str:
    visible = str(text).translate(_CONTROL)
    return escape(visible.encode("utf-8", "replace").decode())


_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#2b6cb0, #6fa8e6); --line: light-dark(#d5d5d5, #444);
        --soft: light-dark(#f5f5f3, #232323); }
body { font: 15px/1.6 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
       max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 0; } h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.from, .note, .example span { opacity: .75; font-size: .9rem; margin: .2rem 0; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.tiles div { background: var(--soft); border-radius: .5rem; padding: .5rem .9rem; font-size: .85rem; }
.tiles b { display: block; font-size: 1.25rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .15rem .6rem;
       border-bottom: 1px solid var(--line); font-size: .9rem; } .data .number { text-align: right; }
.data td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
th { font-weight: 600; white-space: nowrap; } td { overflow-wrap: anywhere; }
pre { font: 13px/1.5 ui-monospace, Menlo, Consolas, "Noto Sans Mono CJK SC", monospace; white-space: pre-wrap;
      margin: 0; unicode-bidi: isolate; }
.example { background: var(--soft); border-radius: .5rem; padding: .4rem .7rem; margin: .4rem 0 .6rem 1rem; }
details, .count { margin: .15rem 0; } summary { cursor: pointer; } .settings { margin-top: 1.5rem; opacity: .8; }
svg { width: 100%; max-width: 44rem; } rect { fill: var(--ink); } line { stroke: var(--line); }
polyline { fill: none; stroke: var(--ink); stroke-width: 2; }
text { font-size: 10px; fill: currentColor; } .mid { text-anchor: middle; } .end { text-anchor: end; }
.axis { opacity: .7; }
""".strip()
