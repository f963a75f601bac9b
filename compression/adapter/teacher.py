"""What the teacher says to a batch: asked as it comes (online), or once for every example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tierwise.compression.adapter.batches import Batch, Numbered
from tierwise.compression.adapter.importance import logits_of
from tierwise.compression.pruning.decoder import evaluating
from tierwise.runtime.errors import ConfigError

LARGEST_CACHE = 2**30
"""Bytes of logits that a cache may hold."""


@dataclass(frozen=True)
class Taught:
    """The teacher's answer to a batch.

    Args:
        logits: Shape (batch, classes), or (batch, tokens, vocabulary).
        hidden: After the embeddings and after each layer, shape (batch, tokens, width); empty
            unless asked for.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


@dataclass
class OnlineTeacher:
    """Asked about every batch anew: for data that streams in, or that is never twice the same.

    Args:
        model: Is not changed.
        hidden: Whether its hidden states are wanted.
        bf16: Whether it multiplies in bfloat16.
    """

    model: nn.Module
    hidden: bool = False
    bf16: bool = False
    asked: int = field(default=0, init=False)

    def __call__(self, numbered: Numbered) -> Taught:
        self.asked += 1
        device = next(self.model.parameters()).device.type
        with (
            evaluating(self.model),
            torch.autocast(device, torch.bfloat16, enabled=self.bf16),
        ):
            output = logits_of(self.model, numbered.batch, output_hidden_states=self.hidden)
        return Taught(output.logits.float(), tuple(output.hidden_states) if self.hidden else ())


@dataclass
class CachedTeacher:
    """Asked once for every example, whose answer is kept in memory.

    Args:
        online: Where the answers come from.
        kept: Logits by the number of the example, padding left out.
    """

    online: OnlineTeacher
    kept: dict[int, Tensor] = field(default_factory=dict)
    nbytes: int = 0

    def __call__(self, numbered: Numbered) -> Taught:
        """See `Taught`.

        Raises:
            ConfigError: The examples have no numbers (a stream), or the answers are too large.
        """
        if not numbered.examples:
            raise ConfigError(
                "a stream's examples come once, so that a teacher's answers to them cannot be "
                "cached. Write teacher: online."
            )
        lengths = _lengths(numbered)
        if any(place not in self.kept for place in numbered.examples):
            logits = self.online(numbered).logits
            rows = [logits] if len(numbered.examples) == 1 and len(logits) > 1 else list(logits)
            for place, length, row in zip(numbered.examples, lengths, rows, strict=True):
                answer = row if row.ndim != 2 or len(rows) == 1 else row[:length]
                self.kept[place] = answer.clone()
                self.nbytes += answer.nbytes
                if self.nbytes > LARGEST_CACHE:
                    raise ConfigError(
                        f"the teacher's answers take more than {LARGEST_CACHE} bytes, as each has "
                        f"{logits.shape[-1]} numbers a token. Write teacher: online."
                    )
        return Taught(self._padded(numbered))

    def _padded(self, numbered: Numbered) -> Tensor:
        answers = [self.kept[place] for place in numbered.examples]
        tokens = numbered.batch["input_ids"].shape[1]
        if answers[0].ndim == 1:
            return torch.stack(answers)
        if answers[0].ndim == 3:
            return answers[0]
        padded = [nn.functional.pad(a, (0, 0, 0, tokens - len(a))) for a in answers]
        return torch.stack(padded)


def check_teacher(teacher: Any, student: Any, batch: Batch) -> None:
    """Refuses a teacher whose answers cannot be compared with the student's.

    Raises:
        ConfigError: No logits, other classes or words, or a score instead of a distribution.
    """
    shapes = []
    for model in (teacher, student):
        with evaluating(model):
            output = logits_of(model, batch)
        logits = output.get("logits") if isinstance(output, Mapping) else None
        if logits is None:
            raise ConfigError(
                f"{type(model).__name__} gives no logits, which distillation compares. Take the "
                "class with a head, such as ...ForSequenceClassification or ...ForCausalLM."
            )
        shapes.append(tuple(logits.shape))
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"the teacher answers {shapes[0][-1]} classes or words a place, the student "
            f"{shapes[1][-1]} (shapes {shapes[0]} and {shapes[1]}). Both must have the same head "
            "and the same tokenizer."
        )
    kind = getattr(student.config, "problem_type", None)
    if shapes[1][-1] == 1 or kind in ("regression", "multi_label_classification"):
        raise ConfigError(
            f"soft targets are distributions over classes, and this model has "
            f"{shapes[1][-1]} outputs of the kind {kind or 'regression'!r}. Write soft: 0 to train "
            "on labels alone."
        )


def _lengths(numbered: Numbered) -> list[int]:
    """Up to where each row has tokens, whichever side its padding is on."""
    mask = numbered.batch["attention_mask"]
    if len(numbered.examples) != len(mask):
        return [mask.shape[1]]
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return [int(length) for length in (mask * places).amax(1)]
