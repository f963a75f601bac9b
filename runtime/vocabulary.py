"""What all tiers of a family share, read without weights: a vocabulary and a chat template.

Prompts are the same for all of them, but for one thing: some are shown how to call tools.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from tierwise.runtime.chat import Call
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import (
    EngineClosedError,
    FamilyError,
    FamilyIncompleteError,
    ModelError,
)
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.llama import Model
from tierwise.runtime.prompt_tokens import PromptTokenizer


class Vocabulary:
    """Turns texts and calls into tokens.

    Reads the vocabulary of the first tier that has a usable file, at first use. Safe to use
    from many threads.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._lock = threading.Lock()  # a model is not safe to use from two threads
        self._model: Model | None = None
        self._templates: dict[bool, ChatTemplate] = {}
        self._tokenizer: PromptTokenizer | None = None
        self._closed = False

    def prompt(self, call: Call, *, taught_tools: bool = False) -> tuple[int, ...]:
        """The call's prompt in tokens.

        Args:
            call: What is asked.
            taught_tools: For tiers that know how to call tools, whatever their template knows.

        Raises:
            FamilyError, ModelError: No tier's vocabulary and chat template can be read, or the
                template refuses the conversation.
            EngineClosedError: It was closed.
        """
        with self._lock:
            model = self._open()
            if self._tokenizer is None:
                self._tokenizer = PromptTokenizer(model)
            template = self._templates.get(taught_tools)
            if template is None:
                template = ChatTemplate.of(model, demonstrates=not taught_tools)
                self._templates[taught_tools] = template
            return self._tokenizer(template.render(call))

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, as a prompt that holds it has them; no BOS is added.

        Raises:
            FamilyError, ModelError: No tier's vocabulary can be read.
            EngineClosedError: It was closed.
        """
        with self._lock:
            return self._open().tokenize(text)

    def close(self) -> None:
        """Frees the vocabulary. Safe to call twice."""
        with self._lock:
            self._closed = True
            if self._model is not None:
                self._model.close()
                self._model = None

    def _open(self) -> Model:
        """Of the first tier whose file is usable; the first tier's error where none is."""
        if self._closed:
            folder = str(self._family.folder)
            raise EngineClosedError(f"the pool of {folder!r} was closed; make a new one")
        if self._model is not None:
            return self._model
        failures: list[FamilyError | ModelError] = []
        for tier in self._family.tiers:
            try:
                self._model = Model(usable_file(self._family, tier), vocab_only=True)
            except (FamilyError, ModelError) as error:
                failures.append(error)
                continue
            return self._model
        raise failures[0]


def usable_file(family: Family, tier: Tier) -> Path:
    """The tier's file, if it still is what the manifest says.

    Raises:
        FamilyIncompleteError: It is gone or has another size.
    """
    path = family.path(tier)
    status_of(path, tier)
    return path


def status_of(path: Path, tier: Tier) -> os.stat_result:
    """The status of a tier's file, as `usable_file` wants it.

    Raises:
        FamilyIncompleteError: As there.
    """
    status = None
    with suppress(OSError):
        status = path.stat()
    size = None if status is None or not S_ISREG(status.st_mode) else status.st_size
    if status is not None and size == tier.bytes:
        return status
    found = "is missing" if size is None else f"has {size:,} bytes, not {tier.bytes:,}"
    raise FamilyIncompleteError(
        f"tier {tier.name!r}: {str(path)!r} {found}; it was changed after the family was "
        "loaded. Restore the file, or run `tierwise build` again with the same arguments."
    )
