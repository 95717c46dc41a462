"""Write tree.md: every module with the first line of what it says of itself.

python docs/make_tree.py
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# The tree

Made by `python docs/make_tree.py` from the first line of each module; a test holds the two together.
[architecture.md](architecture.md) says how the rooms lie.

"""


def first_line(module: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    words = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return " ".join(words.partition("\n\n")[0].split())


def tree(package: Path) -> str:
    """The whole page."""
    lines: list[str] = []
    for module in sorted(package.rglob("*.py"), key=lambda path: (path.parent, path.name)):
        folder, about = module.parent.relative_to(package.parent), first_line(module)
        if module.name == "__init__.py":
            lines.append(f"\n## {folder}/\n")
            if not about:
                continue
        lines.append(f"- `{module.name}`: {about}")
    return HEAD + "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "tree.md").write_text(tree(ROOT / "src" / "luthier"), encoding="utf-8")
