"""Dataclasses that go from process to process by the thousand."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeVar

Class = TypeVar("Class")

_SETTERS: dict[type, list[Callable[[Any, Any], None]]] = {}


def travels_light(cls: type[Class]) -> type[Class]:
    """A decorator of dataclasses with slots: their objects are pickled as the bare values of their fields.

    By themselves dataclasses take each value out, and put it back, by a call that looks its name up: twice as long.
    """
    names: tuple[str, ...] = cls.__slots__  # type: ignore[attr-defined]
    _SETTERS[cls] = [getattr(cls, name).__set__ for name in names]
    values = attrgetter(*names)

    def reduce(self: Class) -> tuple[Any, ...]:
        return made, (cls, values(self))

    cls.__reduce__ = reduce  # type: ignore[assignment, method-assign]
    return cls


def made(cls: type[Class], values: tuple[Any, ...]) -> Class:
    """An object of a class that travels light, out of its fields' values in their order; nothing is checked."""
    new = cls.__new__(cls)
    for put, value in zip(_SETTERS[cls], values, strict=True):
        put(new, value)
    return new
