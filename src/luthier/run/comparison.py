"""A comparison of runs for people and for programs: tables, Markdown, JSON, a page, all of it in a folder."""

from __future__ import annotations

import base64
from dataclasses import asdict
from html import escape
from pathlib import Path

import orjson

from luthier.base import webpage
from luthier.base.console import cell
from luthier.base.markdown import markdown_table
from luthier.base.records import Json
from luthier.base.rundir import write_atomic
from luthier.evaluate.report import change_table
from luthier.run.compare import Comparison


def tables(found: Comparison) -> dict[str, list[dict[str, Json]]]:
    """Every table by its title; those with nothing to say are not there."""
    every = {
        f"Runs, best first by {found.by}": found.overview,
        "Settings that differ": found.settings,
        "Data that differ": found.data,
        "Scores": found.scores,
        **{f"Changes, {pair}": change_table(rows) for pair, rows in found.changes.items()},
    }
    return {title: rows for title, rows in every.items() if rows}


def to_json(found: Comparison) -> dict[str, Json]:
    """Everything but the pictures."""
    told: dict[str, Json] = {name: value for name, value in asdict(found).items() if name != "pictures"}
    told["names"] = list(found.names)
    return told


def write(found: Comparison, folder: Path) -> list[Path]:
    """comparison.md, .json and .html, and plots/*.png.  Raises RunError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plots").mkdir(exist_ok=True)
    for name, picture in found.pictures.items():
        write_atomic(folder / "plots" / name, picture)
    files = {"comparison.md": markdown(found), "comparison.html": html(found)}
    for name, text in files.items():
        write_atomic(folder / name, text.encode())
    write_atomic(folder / "comparison.json", orjson.dumps(to_json(found), option=orjson.OPT_INDENT_2))
    return [folder / name for name in (*files, "comparison.json")]


def markdown(found: Comparison) -> str:
    """The comparison to read."""
    parts = [f"# {' | '.join(found.names)}".replace("|", "and")]
    parts += [f"- {warning}" for warning in found.warnings]
    for title, rows in tables(found).items():
        lines = markdown_table([*rows[0]], [[cell(value) for value in row.values()] for row in rows])
        parts += [f"## {title}", "\n".join(lines)]
    parts += [f"![{name.removesuffix('.png')}](plots/{name})" for name in found.pictures]
    return "\n\n".join(parts) + "\n"


def html(found: Comparison) -> str:
    """A page that needs nothing else and no network."""
    body = ["<h1>Comparison</h1>", *(f"<p class='warn'>{escape(warning)}</p>" for warning in found.warnings)]
    for title, rows in tables(found).items():
        body.append(f"<h2>{escape(title)}</h2>{webpage.table(rows)}")
    for name, picture in found.pictures.items():
        coded = base64.b64encode(picture).decode()
        body.append(f"<img alt='{escape(name)}' src='data:image/png;base64,{coded}'>")
    return webpage.page("Comparison", body, webpage.PLAIN + _STYLE)


_STYLE = ".warn{padding:.5rem .8rem;border-left:5px solid #edae49;background:var(--soft);margin:.4rem 0}"
