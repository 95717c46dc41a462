import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tree_names_every_module_as_it_describes_itself():
    made = runpy.run_path(str(ROOT / "docs" / "make_tree.py"))["tree"](ROOT / "src" / "luthier")
    assert (ROOT / "docs" / "tree.md").read_text(encoding="utf-8") == made, "run: python docs/make_tree.py"


def test_every_module_says_what_it_is():
    first_line = runpy.run_path(str(ROOT / "docs" / "make_tree.py"))["first_line"]
    modules = [path for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"]
    assert [str(path) for path in modules if not first_line(path)] == []
