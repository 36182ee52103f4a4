"""Puts a mutant in place of a loaded module: its functions, defaults and constants, without loading anything anew.

Whoever imported a function or a class keeps the very object and runs the mutant's code. A module's constants are
replaced in every module that imported them. What changed and cannot be put in place is said, not passed over.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any, Final

_DATA: Final = (int, str, bytes, tuple, frozenset, dict, float, type(None))


class NotSwapped(Exception):
    """The mutant differs in something that cannot be put into a loaded module."""


def swap(module: ModuleType, path: str, source: str) -> None:
    """Make a loaded module behave like this source.

    Raises:
        NotSwapped: nothing could be put in place.
        Exception: whatever running the source raises, when it is no module at all.
    """
    mutant = ModuleType(module.__name__)
    mutant.__file__ = path
    original = sys.modules[module.__name__]
    sys.modules[module.__name__] = mutant  # dataclasses look their module up
    try:
        exec(compile(source, path, "exec"), mutant.__dict__)  # noqa: S102 - our own source with one change
    finally:
        sys.modules[module.__name__] = original
    done = sum(_swap_name(module, name, new) for name, new in list(vars(mutant).items()))
    if not done:
        raise NotSwapped(path)


def _swap_name(module: ModuleType, name: str, new: object) -> int:
    old = vars(module).get(name)
    if isinstance(new, FunctionType | type) and getattr(new, "__module__", "") != module.__name__:
        return 0
    if isinstance(old, type) and isinstance(new, type):
        return _swap_class(old, new)
    if _function(old) is not None and _function(new) is not None:
        return _swap_function(old, new)
    if name.startswith("__") or not _differs(old, new):
        return 0
    for user in list(sys.modules.values()):
        with suppress(AttributeError, TypeError):
            if vars(user).get(name) is old:
                setattr(user, name, new)
    return 1


def _swap_class(old: type, new: type) -> int:
    done = 0
    for name, theirs in vars(new).items():
        ours = vars(old).get(name)
        if _function(ours) is not None and _function(theirs) is not None:
            done += _swap_function(ours, theirs)
        elif not name.startswith("__") and isinstance(theirs, _DATA) and theirs != ours:
            setattr(old, name, theirs)
            done += 1
    return done


def _swap_function(old: object, new: object) -> int:
    done = 0
    for ours, theirs in zip(_chain(old), _chain(new), strict=False):
        if ours.__code__.co_code == theirs.__code__.co_code and _same(ours, theirs):
            continue
        ours.__code__ = theirs.__code__
        ours.__defaults__, ours.__kwdefaults__ = theirs.__defaults__, theirs.__kwdefaults__
        done += 1
    return done


def _same(one: FunctionType, other: FunctionType) -> bool:
    return (
        one.__code__ == other.__code__
        and repr(one.__defaults__) == repr(other.__defaults__)
        and repr(one.__kwdefaults__) == repr(other.__kwdefaults__)
    )


def _function(found: object) -> FunctionType | None:
    """The function behind a method, a property or a decorated function."""
    inner: Any = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    while not isinstance(inner, FunctionType) and hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    return inner if isinstance(inner, FunctionType) else None


def _chain(found: object) -> Iterator[FunctionType]:
    function = _function(found)
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _differs(old: object, new: object) -> bool:
    if isinstance(old, type) or isinstance(new, type):
        return False
    return type(old) is not type(new) or (repr(old) != repr(new) and " at 0x" not in repr(new))
