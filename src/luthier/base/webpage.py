"""Pages that need nothing else and no network, and let nothing in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from luthier.base.console import cell
from luthier.base.records import Json


def page(title: str, body: Sequence[str], style: str) -> str:
    """A page around a title and parts that are HTML already.

    Args:
        style: all of its CSS.
    """
    # The body comes last: what stands in it is nobody's place.
    return _PAGE.replace("{style}", style).replace("{title}", title).replace("{body}", "\n".join(body))


def table(rows: Sequence[Mapping[str, Json]], shown: Callable[[Json], str] = lambda value: escape(cell(value))) -> str:
    """Rows with the same columns; nothing where there are none.

    Args:
        shown: a name or a value as HTML.
    """
    if not rows:
        return ""
    head = "".join(f"<th>{shown(name)}</th>" for name in rows[0])
    lines = ("".join(f"<td>{shown(value)}</td>" for value in row.values()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


PLAIN = """
:root{color-scheme:light dark;--line:light-dark(#ccc,#444);--soft:light-dark(#f5f5f3,#232323)}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0;display:block;overflow-x:auto}
td,th{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}th{border-bottom:1px solid var(--line)}
img,svg{max-width:100%}
"""
"""Text, tables and pictures; --line and --soft are colours of light and dark pages."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""
