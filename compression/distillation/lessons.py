"""Documents become lessons: at which positions a student learns, and how batches are made."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tierwise.compression.distillation.signal import SampledLogits

if TYPE_CHECKING:
    from tierwise.compression.distillation.conversations import Document

PAD = 0
"""Behind a document's end; nothing that counts attends to it, as attention is causal."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A document and where it is learned from.

    Args:
        tokens: Shape (n,), int64.
        positions: Shape (m,), int64: tokens after which the next one is to be predicted.
        weights: Shape (m,), float32.
        prompt: Length of the part before the first reply.
        signal: The teacher's, m rows; None where the teacher is asked anew at every step.
    """

    tokens: Tensor
    positions: Tensor
    weights: Tensor
    prompt: int
    signal: SampledLogits | None = None


def make_lessons(
    documents: Sequence[Document], *, prompt_share: float, prompt_weight: float, seed: int
) -> list[Lesson]:
    """Lessons without a signal, one for each document."""
    out = []
    for document in documents:
        positions, weights = choose_positions(
            document, prompt_share=prompt_share, prompt_weight=prompt_weight, seed=seed
        )
        tokens = torch.from_numpy(np.asarray(document.tokens, dtype=np.int64))
        prompt = int(np.argmax(np.asarray(document.answer, dtype=bool)))
        out.append(Lesson(tokens, torch.from_numpy(positions), torch.from_numpy(weights), prompt))
    return out


def choose_positions(
    document: Document, *, prompt_share: float, prompt_weight: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All positions whose next token is part of a reply, and some of the others.

    A prompt is eight times as long as its reply, and says the same things again and again: to
    learn from a quarter of it saves the output layer's time.

    Returns:
        Positions in ascending order and their weights, both of shape (m,).
    """
    replies = np.asarray(document.answer, dtype=bool)[1:]
    rng = np.random.default_rng((seed, len(document.tokens), int(document.tokens[-1])))
    prompts = ~replies & (rng.random(len(replies)) < prompt_share)
    positions = np.flatnonzero(replies | prompts)
    weights = np.where(replies[positions], 1.0, prompt_weight).astype(np.float32)
    return positions, weights


@dataclass(frozen=True, slots=True)
class Batch:
    """Lessons side by side, padded on the right.

    Args:
        tokens: Shape (lessons, longest).
        rows: Shape (m,): indices into the flattened tokens of all positions that count.
        weights: Shape (m,).
        labels: Shape (m,): the tokens that really follow.
        signal: m rows, or None.
        real: Tokens that are no padding.
    """

    tokens: Tensor
    rows: Tensor
    weights: Tensor
    labels: Tensor
    signal: SampledLogits | None
    real: int

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.tokens.to(device),
            self.rows.to(device),
            self.weights.to(device),
            self.labels.to(device),
            None if self.signal is None else self.signal.to(device),
            self.real,
        )


def collate(lessons: Sequence[Lesson]) -> Batch:
    """One batch of these lessons."""
    longest = max(len(lesson.tokens) for lesson in lessons)
    tokens = torch.full((len(lessons), longest), PAD, dtype=torch.long)
    rows, labels = [], []
    for number, lesson in enumerate(lessons):
        tokens[number, : len(lesson.tokens)] = lesson.tokens
        rows.append(number * longest + lesson.positions)
        labels.append(lesson.tokens[lesson.positions + 1])
    signals = [lesson.signal for lesson in lessons if lesson.signal is not None]
    signal = None
    if len(signals) == len(lessons):
        signal = SampledLogits(
            torch.cat([one.ids for one in signals]),
            torch.cat([one.weights for one in signals]),
            torch.cat([one.entropy for one in signals]),
            signals[0].temperature,
        )
    return Batch(
        tokens,
        torch.cat(rows),
        torch.cat([lesson.weights for lesson in lessons]),
        torch.cat(labels),
        signal,
        sum(len(lesson.tokens) for lesson in lessons),
    )


def plan_epoch(
    lengths: Sequence[int], *, tokens_per_step: int, micro_tokens: int, seed: int, epoch: int
) -> list[list[list[int]]]:
    """Steps of micro-batches of lesson numbers, every lesson once; the same for the same seed.

    Lessons of like length share a micro-batch (little padding), micro-batches are shuffled, and
    so many make a step as hold ``tokens_per_step`` tokens.
    """
    rng = random.Random(f"{seed} {epoch}")
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i] // 16, rng.random()))
    micro: list[list[int]] = []
    longest = 0
    for number in order:
        longest = max(longest, lengths[number])
        if not micro or (len(micro[-1]) + 1) * longest > micro_tokens:
            micro.append([])
            longest = lengths[number]
        micro[-1].append(number)
    rng.shuffle(micro)
    steps: list[list[list[int]]] = [[]]
    held = 0
    for part in micro:
        size = sum(lengths[number] for number in part)
        if held and held + size > tokens_per_step * 1.05:
            steps.append([])
            held = 0
        steps[-1].append(part)
        held += size
    return steps


def pack(lessons: Sequence[Lesson]) -> dict[str, Tensor]:
    """Lessons as tensors for a file; `unpack` gives them back."""
    packed = {
        "lengths": torch.tensor([len(one.tokens) for one in lessons]),
        "counts": torch.tensor([len(one.positions) for one in lessons]),
        "prompts": torch.tensor([one.prompt for one in lessons]),
        "tokens": torch.cat([one.tokens.int() for one in lessons]),
        "positions": torch.cat([one.positions.int() for one in lessons]),
        "weights": torch.cat([one.weights for one in lessons]),
    }
    signals = [one.signal for one in lessons if one.signal is not None]
    if len(signals) == len(lessons):
        packed["signal/ids"] = torch.cat([one.ids for one in signals])
        packed["signal/weights"] = torch.cat([one.weights for one in signals])
        packed["signal/entropy"] = torch.cat([one.entropy for one in signals])
        packed["signal/temperature"] = torch.tensor(signals[0].temperature)
    return packed


def unpack(packed: Mapping[str, Tensor]) -> list[Lesson]:
    """The lessons that `pack` made tensors of."""
    counts = packed["counts"].tolist()
    tokens = packed["tokens"].long().split(packed["lengths"].tolist())
    positions = packed["positions"].long().split(counts)
    weights = packed["weights"].split(counts)
    signals: list[SampledLogits | None] = [None] * len(counts)
    if "signal/ids" in packed:
        temperature = float(packed["signal/temperature"])
        ids, shares, entropies = (
            packed[f"signal/{name}"].split(counts) for name in ("ids", "weights", "entropy")
        )
        signals = [
            SampledLogits(*three, temperature=temperature)
            for three in zip(ids, shares, entropies, strict=True)
        ]
    rows = zip(tokens, positions, weights, packed["prompts"].tolist(), signals, strict=True)
    return [Lesson(*row) for row in rows]
