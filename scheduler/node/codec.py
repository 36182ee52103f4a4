"""Frozen dataclasses to and from JSON, strictly: a wrong, missing or unknown field is refused by its path.

Understands str, int, bool, StrEnum, nested dataclasses, `tuple[T, ...]`, `dict[str, T]` and `T | None`. An
int is never taken for a bool nor a float for an int. What is encoded decodes to an equal value.
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar

from kernel.errors import Invalid

T = TypeVar("T")
_Decode = Callable[[object, str], Any]

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


def decode(kind: type[T], data: object, field: str = "message") -> T:
    """The `kind` that JSON data describes.

    Raises:
        MalformedMessage: names the path of the first bad field, such as `message.desired[0].argv`.
    """
    decoder: _Decode = _decoder(typing.cast("typing.Hashable", kind))
    return typing.cast("T", decoder(data, field))


@cache
def _field_names(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 - a type, whatever it is
    """The fields of a dataclass; none of any other type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def _refuse(field: str, problem: str) -> typing.NoReturn:
    raise MalformedMessage(field=field, problem=problem)


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
    def run(data: object, field: str) -> object:
        if type(data) is not kind:
            _refuse(field, f"must be {kind.__name__}, not {type(data).__name__}")
        return data

    return run


def _choice(kind: type[StrEnum]) -> _Decode:
    def run(data: object, field: str) -> StrEnum:
        try:
            return kind(typing.cast("str", data))
        except ValueError:
            _refuse(field, f"must be one of {', '.join(kind)}")

    return run


def _optional(inner: object) -> _Decode:
    decoder = _decoder(inner)
    return lambda data, field: None if data is None else decoder(data, field)


def _sequence(inner: object) -> _Decode:
    decoder = _decoder(inner)

    def run(data: object, field: str) -> tuple[object, ...]:
        if not isinstance(data, list):
            _refuse(field, f"must be a list, not {type(data).__name__}")
        return tuple(decoder(item, f"{field}[{index}]") for index, item in enumerate(data))

    return run


def _mapping(inner: object) -> _Decode:
    decoder = _decoder(inner)

    def run(data: object, field: str) -> dict[str, object]:
        if not isinstance(data, dict):
            _refuse(field, f"must be an object, not {type(data).__name__}")
        return {key: decoder(item, f"{field}.{key}") for key, item in data.items()}

    return run


def _record(kind: type) -> _Decode:
    hints = typing.get_type_hints(kind)
    decoders = {field.name: _decoder(hints[field.name]) for field in dataclasses.fields(kind)}
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def run(data: object, field: str) -> object:
        if not isinstance(data, dict):
            _refuse(field, f"must be an object, not {type(data).__name__}")
        for name in data:
            if name not in decoders:
                _refuse(f"{field}.{name}", "is not a known field")
        for name in sorted(required - data.keys()):
            _refuse(f"{field}.{name}", "is missing")
        return kind(**{name: decoders[name](value, f"{field}.{name}") for name, value in data.items()})

    return run
