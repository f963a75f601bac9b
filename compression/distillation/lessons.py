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
from torch.nn.utils.rnn import pad_sequence

from tierwise.compression.distillation.signal import SampledLogits

if TYPE_CHECKING:
    from tierwise.compression.distillation.conversations import Document

NO_HINT = torch.empty(0, dtype=torch.long)

PAD = 0
"""Behind a document's end; nothing that counts attends to it, as attention is causal."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A document and where it is learned from.

    Args:
        tokens: Shape (n,), int64.
        positions: Shape (m,), int64: tokens after which the next one is to be predicted.
        weights: Shape (m,), float32.
        given: Shape (m,), bool: where the next token is of a reply that is right.
        prompt: Length of the part before the first reply.
        signal: The teacher's, m rows; None where the teacher is asked anew at every step.
        hint: Shape (k,), int64: what the teacher reads in this place and the student does not.
        hint_at: How many of the tokens come before the hint.
    """

    tokens: Tensor
    positions: Tensor
    weights: Tensor
    given: Tensor
    prompt: int
    signal: SampledLogits | None = None
    hint: Tensor = NO_HINT
    hint_at: int = 0

    @property
    def teacher_tokens(self) -> Tensor:
        """What the teacher reads, shape (n + k,)."""
        return torch.cat([self.tokens[: self.hint_at], self.hint, self.tokens[self.hint_at :]])

    @property
    def teacher_positions(self) -> Tensor:
        """Where the teacher predicts what the student does, shape (m,)."""
        behind = self.positions >= self.hint_at - 1
        return self.positions + behind * len(self.hint)


def make_lessons(
    documents: Sequence[Document],
    *,
    prompt_share: float,
    prompt_weight: float,
    shown: float = 1.0,
    seed: int = 0,
) -> list[Lesson]:
    """Lessons without a signal, one for each document.

    Args:
        documents: To learn from.
        prompt_share, prompt_weight: See `choose_positions`.
        shown: Share of the documents whose demonstration of tools the student reads too. In the
            others it learns from its teacher what the demonstration shows (context distillation,
            Snell et al., arXiv 2209.15189), from half as many tokens.
        seed: Of the draws.
    """
    out = []
    for document in documents:
        tokens = np.asarray(document.tokens, dtype=np.int64)
        replies = np.asarray(document.answer, dtype=bool)
        given = np.asarray(document.given, dtype=bool)
        start, stop = document.shown
        rng = np.random.default_rng((seed, len(tokens), int(tokens[-1])))
        if rng.random() < shown:
            start = stop = 0
        hint = tokens[start:stop]
        tokens, replies, given = (
            np.delete(part, np.s_[start:stop]) for part in (tokens, replies, given)
        )
        positions, weights = choose_positions(
            replies, rng, prompt_share=prompt_share, prompt_weight=prompt_weight
        )
        lesson = Lesson(
            torch.from_numpy(tokens),
            torch.from_numpy(positions),
            torch.from_numpy(weights),
            torch.from_numpy(given[positions + 1]),
            prompt=int(np.argmax(replies)),
            hint=torch.from_numpy(hint),
            hint_at=start,
        )
        out.append(lesson)
    return out


def choose_positions(
    replies: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    prompt_share: float,
    prompt_weight: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All positions whose next token is part of a reply, and some of the others.

    A prompt is eight times as long as its reply, and says the same things again and again: to
    learn from a quarter of it saves the output layer's time.

    Args:
        replies: Shape (n,): which tokens are part of one.
        rng: Draws the others.
        prompt_share: Share of the others.
        prompt_weight: Their weight.

    Returns:
        Positions in ascending order and their weights, both of shape (m,).
    """
    replies = replies[1:]
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
        given: Shape (m,), bool: where the label is a right one.
        labels: Shape (m,): the tokens that really follow.
        signal: m rows, or None.
        teacher_tokens: Shape (lessons, longest for the teacher): with the hints.
        teacher_rows: Shape (m,): indices into those, flattened.
    """

    tokens: Tensor
    rows: Tensor
    weights: Tensor
    given: Tensor
    labels: Tensor
    signal: SampledLogits | None
    teacher_tokens: Tensor
    teacher_rows: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.tokens.to(device),
            self.rows.to(device),
            self.weights.to(device),
            self.given.to(device),
            self.labels.to(device),
            None if self.signal is None else self.signal.to(device),
            self.teacher_tokens.to(device),
            self.teacher_rows.to(device),
        )


def collate(lessons: Sequence[Lesson]) -> Batch:
    """One batch of these lessons."""
    tokens = pad_sequence([one.tokens for one in lessons], batch_first=True, padding_value=PAD)
    rows = _rows([one.positions for one in lessons], tokens.shape[1])
    teacher_tokens, teacher_rows = tokens, rows
    if any(len(one.hint) for one in lessons):
        teacher_tokens = pad_sequence(
            [one.teacher_tokens for one in lessons], batch_first=True, padding_value=PAD
        )
        teacher_rows = _rows([one.teacher_positions for one in lessons], teacher_tokens.shape[1])
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
        rows,
        torch.cat([lesson.weights for lesson in lessons]),
        torch.cat([lesson.given for lesson in lessons]),
        torch.cat([lesson.tokens[lesson.positions + 1] for lesson in lessons]),
        signal,
        teacher_tokens,
        teacher_rows,
    )


def _rows(positions: Sequence[Tensor], longest: int) -> Tensor:
    return torch.cat([number * longest + part for number, part in enumerate(positions)])


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
        "given": torch.cat([one.given for one in lessons]),
        "hints": torch.cat([one.hint.int() for one in lessons]),
        "hint_lengths": torch.tensor([len(one.hint) for one in lessons]),
        "hint_at": torch.tensor([one.hint_at for one in lessons]),
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
    given = packed["given"].split(counts)
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
    hints = packed["hints"].long().split(packed["hint_lengths"].tolist())
    prompts, places = packed["prompts"].tolist(), packed["hint_at"].tolist()
    rows = zip(tokens, positions, weights, given, prompts, signals, hints, places, strict=True)
    return [Lesson(*row) for row in rows]
