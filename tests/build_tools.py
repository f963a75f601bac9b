"""What the tests of building share: types of fixtures, and a reporter that remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tierwise.compression.reporting import Progress

FileLimit = Callable[[int], AbstractContextManager[None]]
"""Of the fixture ``file_limit``: no file may become larger than so many bytes."""


class Recorder:
    """A reporter that keeps titles and notes."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        self.titles.append(title)
        yield lambda _text, _share: None

    def note(self, text: str) -> None:
        self.notes.append(text)
