"""Whether an answer fits a JSON schema, as far as answers of models are described by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def mismatch(answer: str, schema: Mapping[str, Any]) -> str | None:
    """Why an answer does not fit, with the path; None when it does.

    Known are type, enum, const, properties, required, additionalProperties (false), items, minItems, maxItems,
    minLength, maxLength, minimum, maximum and anyOf; other keywords are not checked.
    """
    try:
        value = orjson.loads(answer)
    except orjson.JSONDecodeError as error:
        return f"the answer is not JSON: {error.msg}"
    return _wrong(value, schema, "answer")


def _wrong(value: Any, schema: Mapping[str, Any], path: str) -> str | None:
    if "anyOf" in schema and all(_wrong(value, option, path) for option in schema["anyOf"]):
        return f"{path} fits none of the options"
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{path} should be {' or '.join(kinds)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{path} is {value!r}, not one of the choices"
    if "const" in schema and value != schema["const"]:
        return f"{path} should be {schema['const']!r}"
    if isinstance(value, dict):
        return _wrong_object(value, schema, path)
    if isinstance(value, list):
        return _wrong_list(value, schema, path)
    size = len(value) if isinstance(value, str) else value
    low, high = ("minLength", "maxLength") if isinstance(value, str) else ("minimum", "maximum")
    if isinstance(size, int | float) and not isinstance(size, bool):
        if low in schema and size < schema[low]:
            return f"{path} is below {schema[low]}"
        if high in schema and size > schema[high]:
            return f"{path} is above {schema[high]}"
    return None


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _wrong_object(value: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> str | None:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{path} has no {name!r}"
    if schema.get("additionalProperties") is False and (more := [name for name in value if name not in known]):
        return f"{path} has {more[0]!r}, which nobody asked for"
    found = (_wrong(value[name], known[name], f"{path}.{name}") for name in known if name in value)
    return next((wrong for wrong in found if wrong), None)


def _wrong_list(value: list[Any], schema: Mapping[str, Any], path: str) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{path} has {len(value)} items"
    found = (_wrong(item, schema.get("items", {}), f"{path}[{number}]") for number, item in enumerate(value))
    return next((wrong for wrong in found if wrong), None)
