"""The data workshop from Python: every verb is a function of this module, with the settings of its command.

    from luthier import prepare

    done = prepare.dedup("raw.jsonl", output="clean.jsonl", near=True, threshold=0.8)
    done.report.summary           # {"duplicates": 378, ...}

    prepare.run("recipe.yaml")    # as `luthier data run`

A function takes data sets first, then the settings of the verb and of `ReadConfig` by name, `output`, `report` and
`removed` as on the command line, and the callables that a verb asks for (`Verb.tools`).  It returns a
`luthier.prepare.report.Finished`.  Under Daft's native runner processes are started for large inputs, so a script
must guard its calls with `if __name__ == "__main__":` as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.base.console import Console
    from luthier.prepare.recipe import Run
    from luthier.prepare.report import Finished

_PLACES = ("output", "report", "removed")


def __getattr__(name: str) -> Any:
    verbs = import_module("luthier.prepare.verbs")  # a from-import would ask this function for it
    if name in verbs.names():
        function = partial(_call, name)
        function.__doc__ = verbs.load(name).about
        return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    verbs = import_module("luthier.prepare.verbs")
    return ["run", *verbs.names()]


def _call(
    name: str, inputs: str | Path | Sequence[str | Path], *, console: Console | None = None, **settings: Any
) -> Finished:
    """One verb on data sets; see the module.

    Raises:
        LuthierError: as the command would end; see `luthier.prepare.work.do`.
    """
    from luthier.base.config import validate
    from luthier.base.console import Console
    from luthier.prepare import verbs, work
    from luthier.prepare.config import ReadConfig
    from luthier.prepare.places import places

    verb = verbs.load(name)
    sets = tuple(str(item) for item in ([inputs] if isinstance(inputs, str | Path) else inputs))
    wishes = {place: str(settings.pop(place)) for place in _PLACES if settings.get(place) is not None}
    tools: dict[str, Callable[..., Any]] = {tool: settings.pop(tool) for tool in verb.tools if tool in settings}
    read = validate(ReadConfig, {key: settings.pop(key) for key in list(settings) if key in ReadConfig.model_fields})
    config = validate(verb.config, {key: value for key, value in settings.items() if key not in _PLACES})
    made = places(verb, config, sets, hub=read.hub, **wishes)
    return work.do(verb, config, read, sets, made, console or Console(quiet=True), tools=tools)


def run(recipe: str | Path, *, console: Console | None = None, **settings: Any) -> Run:
    """Run a recipe file; settings of the recipe given by name win over the file.

    Raises:
        LuthierError: see `luthier.prepare.recipe.run`.
    """
    from luthier.base.config import merge, read_yaml, validate
    from luthier.base.console import Console
    from luthier.prepare.recipe import run as run_recipe
    from luthier.prepare.steps import RecipeConfig

    config = validate(RecipeConfig, merge(read_yaml(Path(recipe)), settings))
    return run_recipe(config, console or Console(quiet=True))
