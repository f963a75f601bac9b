"""How a long job tells what it is doing, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Progress = Callable[[str, float], None]
"""Called with what is done (for people) and its share in 0..1."""


class Reporter(Protocol):
    """Receives the stages of a build. The command line draws bars; the default is silent."""

    def stage(self, title: str) -> AbstractContextManager[Progress]:
        """A stage begins; it ends with the context."""

    def note(self, text: str) -> None:
        """Something worth knowing, such as why a tier was dropped."""


class Silent:
    """Reports nothing."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        del title
        yield lambda _text, _share: None

    def note(self, text: str) -> None:
        del text
