"""Errors that LangChain's own code looks for, such as its middleware that summarizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tierwise.runtime.errors import ContextOverflowError

try:
    from langchain_core.exceptions import ContextOverflowError as _Overflow
except ImportError:  # an older langchain-core knows no such error
    from langchain_core.exceptions import LangChainException as _Overflow  # type: ignore[assignment]


class _ContextOverflowError(ContextOverflowError, _Overflow):
    """Ours and LangChain's: who catches either is told."""


@contextmanager
def told_to_langchain() -> Iterator[None]:
    """What is raised within is raised as what LangChain calls it, too.

    Raises:
        ContextOverflowError: Which is a `langchain_core.exceptions.ContextOverflowError`.
    """
    try:
        yield
    except ContextOverflowError as error:
        raise _ContextOverflowError(str(error)) from error
