"""Frozen dataclasses to and from JSON, strictly: a wrong, missing or unknown field is refused by its path.

Understands str, int, bool, StrEnum, nested dataclasses, `tuple[T, ...]`, `dict[str, T]` and `T | None`. An
int is never taken for a bool nor a float for an int. What is encoded decodes to an equal value.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar

from kernel.errors import Invalid

T = TypeVar("T")
_Decode = Callable[[Any], Any]

_PLAIN: Final = frozenset({str, int, bool, float, types.NoneType})
"""What JSON takes as it is; most of a message is of these, and is looked at no further."""


class MalformedMessage(Invalid):
    """JSON that is not the message it should be."""

    sentence = "{field}: {problem}."


def encode(value: object) -> Any:  # noqa: ANN401 - JSON has no narrower type
    """The JSON-ready form of a dataclass (or of a part of one)."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if names := _field_names(typing.cast("typing.Hashable", kind)):
        fields = ((name, getattr(value, name)) for name in names)
        return {name: part if type(part) in _PLAIN else encode(part) for name, part in fields}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return value


def to_json(value: object) -> bytes:
    """The JSON of what `encode` makes, without making it."""
    return _JSON.encode(value).encode()


def _parts(value: object) -> dict[str, object]:
    kind = type(value)
    names = _field_names(typing.cast("typing.Hashable", kind))
    if not names:
        message = f"{kind.__name__} is not for JSON"
        raise TypeError(message)
    return {name: getattr(value, name) for name in names}


_JSON: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False, default=_parts)


def decode(kind: type[T], data: object, field: str = "message") -> T:
    """The `kind` that JSON data describes.

    Raises:
        MalformedMessage: names the path of the first bad field, such as `message.desired[0].argv`.
    """
    decoder: _Decode = _decoder(typing.cast("typing.Hashable", kind))
    try:
        return typing.cast("T", decoder(data))
    except _Bad as bad:
        raise MalformedMessage(field=field + "".join(reversed(bad.steps)), problem=bad.problem) from None


class _Bad(Exception):
    """What is wrong with a part, and the steps of its path, the last first: so only a refusal costs anything for it."""

    def __init__(self, problem: str, *steps: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.steps = list(steps)

    def below(self, step: str) -> "_Bad":
        """The same, seen from one step above."""
        self.steps.append(step)
        return self


@cache
def _field_names(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 - a type, whatever it is
    """The fields of a dataclass; none of any other type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


@cache
def _decoder(kind: Any) -> _Decode:  # noqa: ANN401 - a type expression, which typing cannot name
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        return _optional(next(a for a in arguments if a is not types.NoneType))
    if origin is tuple:
        return _sequence(arguments[0])
    if origin is dict:
        return _mapping(arguments[1])
    if dataclasses.is_dataclass(kind):
        return _record(typing.cast("type", kind))
    if issubclass(kind, StrEnum):
        return _choice(kind)
    return _scalar(kind)


def _scalar(kind: type) -> _Decode:
    def run(data: object) -> object:
        if type(data) is not kind:
            raise _Bad(f"must be {kind.__name__}, not {type(data).__name__}")
        return data

    return run


def _choice(kind: type[StrEnum]) -> _Decode:
    choices: dict[object, StrEnum] = {choice.value: choice for choice in kind}

    def run(data: object) -> StrEnum:
        if not isinstance(data, str) or data not in choices:
            raise _Bad(f"must be one of {', '.join(kind)}")
        return choices[data]

    return run


def _optional(inner: object) -> _Decode:
    decoder = _decoder(inner)
    return lambda data: None if data is None else decoder(data)


def _sequence(inner: object) -> _Decode:
    decoder = _decoder(inner)

    def run(data: object) -> tuple[object, ...]:
        if not isinstance(data, list):
            raise _Bad(f"must be a list, not {type(data).__name__}")
        found: list[object] = []
        try:
            for item in data:
                found.append(decoder(item))  # noqa: PERF401 - what was found says where a bad one stands
        except _Bad as bad:
            raise bad.below(f"[{len(found)}]") from None
        return tuple(found)

    return run


def _mapping(inner: object) -> _Decode:
    decoder = _decoder(inner)

    def run(data: object) -> dict[str, object]:
        if not isinstance(data, dict):
            raise _Bad(f"must be an object, not {type(data).__name__}")
        found: dict[str, object] = {}
        key = ""
        try:
            for key, item in data.items():
                found[key] = decoder(item)
        except _Bad as bad:
            raise bad.below(f".{key}") from None
        return found

    return run


def _record(kind: type) -> _Decode:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    decoders = {field.name: _decoder(hints[field.name]) for field in fields}
    plain = {field.name: hints[field.name] for field in fields if hints[field.name] in _PLAIN}
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def run(data: object) -> object:
        if not isinstance(data, dict):
            raise _Bad(f"must be an object, not {type(data).__name__}")
        if unknown := data.keys() - decoders.keys():
            raise _Bad("is not a known field", f".{min(unknown)}")
        if missing := required - data.keys():
            raise _Bad("is missing", f".{min(missing)}")
        found: dict[str, object] = {}
        name = ""
        try:
            for name, value in data.items():
                known = plain.get(name)
                found[name] = value if known is type(value) else decoders[name](value)
        except _Bad as bad:
            raise bad.below(f".{name}") from None
        return kind(**found)

    return run
