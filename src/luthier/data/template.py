"""Chat templates, which are programs that come with a model and are not trusted.

They run in Jinja's sandbox, and everything they do is charged to a budget: turns of loops, calls, and the size of
every value they build.  A template that reaches for Python's internals, loops without end or grows without bound is
stopped.  What is left out of the sandbox is listed in `_FILTERS` and `_REFUSED_METHODS`.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

OPEN, CLOSE = "\U0010fff0", "\U0010fff1"
"""Written around what stands in a {% generation %} block; private-use characters no text needs."""

TURN, CALL, VALUE = 8, 32, 8
"""Prices in characters: one turn of a loop, one call or filter, one value inside a list or dict."""
BASE_BUDGET = 16_000_000
PER_CHARACTER = 64
"""A conversation of n characters may cost BASE_BUDGET + PER_CHARACTER * n."""
SECONDS = 10.0

_FILTERS = frozenset(
    """abs attr capitalize count d default dictsort e escape first float groupby indent int items join last length list
    lower map max min reject rejectattr replace reverse safe select selectattr sort string sum title trim truncate
    unique upper wordcount""".split()  # noqa: SIM905  (a list is ten lines)
)
_REFUSED_METHODS = frozenset(["format", "format_map", "ljust", "rjust", "center", "zfill", "expandtabs", "translate"])
_MAX_INDENT = 64


class TemplateFault(Exception):
    """A template that cannot be compiled, or that failed or was stopped on one conversation."""


class _Budget:
    """What one rendering may still cost."""

    def __init__(self, characters: int):
        self.left = BASE_BUDGET + PER_CHARACTER * characters
        self.deadline = time.monotonic() + SECONDS

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0 or time.monotonic() > self.deadline:
            raise SecurityError("the template does too much work: an endless loop, or output without bound")


_budget: ContextVar[_Budget] = ContextVar("budget")


def _weight(value: Any) -> int:
    """Size of a value with all it contains, in characters.  A list of weight w takes time w to print or compare."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return VALUE + sum(_weight(key) + _weight(item) for key, item in cast(dict[Any, Any], value).items())
    if isinstance(value, (list, tuple)):
        return VALUE + sum(map(_weight, cast(Iterable[Any], value)))
    return VALUE


def _charged(value: Any) -> Any:
    """Pay for a value the template has built."""
    _budget.get().spend(_weight(value))
    return value


def _turns(values: Any, cost: int) -> Any:
    """Pay for the turns of a loop over `values`, before the first one where their number is known."""
    if isinstance(values, Sized):
        _budget.get().spend(len(values) * cost)
        return values
    return _paid_turns(values, cost)


def _paid_turns(values: Iterable[Any], cost: int) -> Iterator[Any]:
    for value in values:
        _budget.get().spend(cost)
        yield value


class _Charges(NodeTransformer):
    """Puts the charges into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        literal = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        node.iter = _filter(cast(nodes.Expr, node.iter), "_turns", nodes.Const(TURN + literal))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            child if isinstance(child, nodes.TemplateData) else _filter(child, "_charged") for child in node.nodes
        ]
        return node

    def _built(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_charged")

    visit_Concat = visit_List = visit_Dict = _built

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._built(node) if node.ctx == "load" else node


def _filter(node: nodes.Expr, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


class _ChargingGenerator(CodeGenerator):
    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        super().visit_Template(_Charges().visit(node), frame)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks what the model writes."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (nodes.Output([nodes.TemplateData(mark)]) for mark in (OPEN, CLOSE))
        return nodes.Scope([before, *body, after], lineno=line)


class _Names(Namespace):
    """A namespace that cannot pass for something else: names with an underscore in front are refused."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"the name {name!r} is private")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _ChargingGenerator
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        own = {"indent": _indent, "join": _join, "replace": _replace, "tojson": _tojson}
        known = {name: function for name, function in self.filters.items() if name in _FILTERS}
        self.filters = {name: _result_charged(function) for name, function in (known | own).items()}
        self.filters |= {"_charged": _charged, "_turns": _turns}
        del self.globals["lipsum"]
        self.globals |= {"dict": _dict, "namespace": _Names, "raise_exception": _raise, "strftime_now": _now}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _REFUSED_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No wrapper: `str.format` is refused like any other unsafe attribute."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _budget.get().spend(CALL)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and args:
            if obj.__name__ == "replace":
                _charge_replace(owner, *args[:2])
            elif obj.__name__ == "join":
                _charge_join(args[0], owner)
        return _charged(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _charge_repeat(left, right)
        elif operator == "**" and not (abs(left) <= 2**64 and abs(right) <= 64):
            raise SecurityError("the power is too large")
        elif operator == "%" and isinstance(left, (str, bytes)):
            raise SecurityError("formatting with % is not available")
        return _charged(super().call_binop(context, operator, left, right))


def _result_charged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        _budget.get().spend(CALL)
        return _charged(function(*args, **kwargs))

    return charged


def _charge_repeat(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int):
            size = value.bit_length() if isinstance(value, int) else _weight(value)
            _budget.get().spend(size * times.bit_length() if isinstance(value, int) else size * max(times, 0))


def _charge_replace(text: str, old: str, new: str) -> None:
    _budget.get().spend(text.count(old) * len(new))


def _charge_join(values: Any, joint: str) -> None:
    _budget.get().spend(len(joint) * (len(values) if isinstance(values, Sized) else 1))


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    values = [item if attribute is None else item[attribute] for item in value]
    _charge_join(values, str(d))
    return str(d).join(map(str, values))


def _replace(s: str, old: str, new: str, count: int = -1) -> str:
    _charge_replace(str(s), str(old), str(new))
    return str(s).replace(str(old), str(new), count)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    space = width if isinstance(width, str) else " " * min(width, _MAX_INDENT)
    _budget.get().spend((s.count("\n") + 1) * len(space))
    lines = [space + line if line.strip() or blank else line for line in s.splitlines(keepends=True)]
    text = "".join(lines)
    return text if first or not lines or not lines[0].startswith(space) else text[len(space) :]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter, as models were trained on it."""
    spaces = None if indent is None else min(indent, _MAX_INDENT)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=spaces, separators=separators, sort_keys=sort_keys)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


class Template:
    """A compiled chat template.

    Raises:
        TemplateFault: it is not valid Jinja.
    """

    def __init__(self, source: str):
        with _guarded(0):
            self._compiled = _Environment().from_string(source)

    def render(self, variables: Mapping[str, Any], characters: int) -> str:
        """The text for one conversation of so many characters.

        Raises:
            TemplateFault: with the message of `raise_exception`, or what the template did wrong.
        """
        with _guarded(characters):
            return self._compiled.render(variables)


@contextmanager
def _guarded(characters: int) -> Generator[None]:
    """Gives a rendering its budget, and turns whatever goes wrong in it into one TemplateFault."""
    token = _budget.set(_Budget(characters))
    try:
        yield
    except jinja2.TemplateSyntaxError as error:
        raise TemplateFault(f"line {error.lineno}: {error.message}") from error
    except RecursionError:
        raise TemplateFault("the template calls itself without end") from None
    except Exception as error:  # a template can fail in as many ways as Python
        raise TemplateFault(str(error) or type(error).__name__) from error
    finally:
        _budget.reset(token)
