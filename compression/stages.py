"""Finished pieces of a build, kept by the hash of what they were made from.

A build that was killed finds them again; one with other arguments finds those that it shares.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tierwise.runtime.files import write_atomically

FORMAT = 2
"""Raise it when a stage computes something else than before from the same inputs."""

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def content_key(**inputs: Any) -> str:
    """16 hex digits that stand for these inputs (and for `FORMAT`)."""
    text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Stages:
    """The ``.build`` folder beside a family that is being made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, kind: str, key: str, suffix: str) -> Path:
        """Where a stage's file belongs. A name ending in .part is never taken for it."""
        return self.folder / f"{kind}-{key}{suffix}"

    def load(self, kind: str, key: str, model: type[M]) -> M | None:
        """A finished stage's record; None where there is none, or a damaged one."""
        path = self.file(kind, key, ".json")
        try:
            return model.model_validate_json(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError, UnicodeDecodeError):
            return None

    def save(self, kind: str, key: str, record: BaseModel) -> None:
        """Keeps a finished stage's record."""
        write_atomically(self.file(kind, key, ".json"), record.model_dump_json())


def interruptible(work: Callable[[], T]) -> T:
    """Runs one long C call in a thread, so that Ctrl-C is answered at once.

    Python handles signals between its own instructions, and a C call is one of them. After an
    interrupt the thread is left to end by itself; it only writes a file that nothing reads.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="tierwise-build", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.2)
    if failure:
        raise failure[0]
    return result[0]
