"""A small memory for functions whose arguments cannot be hashed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Latest(Generic[Key, Value]):
    """Remembers what a function made of its latest arguments, which need not be hashable."""

    def __init__(self, make: Callable[[Key], Value], keep: int = 16) -> None:
        self._make = make
        self._keep = keep
        self._known: tuple[tuple[Key, Value], ...] = ()

    def __call__(self, key: Key) -> Value:
        for known, value in self._known:
            if known is key or known == key:
                return value
        value = self._make(key)
        self._known = ((key, value), *self._known[: self._keep - 1])
        return value
