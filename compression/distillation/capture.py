"""The teacher's signal, captured once for all students and kept on disk.

Shards are written one by one and each has its own hash: a capture that was killed goes on, and
a shard that was damaged is captured again. A position takes 204 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tierwise.compression.distillation.lessons import Lesson, collate, make_lessons
from tierwise.compression.distillation.signal import SampledLogits, sample_logits
from tierwise.compression.distillation.teacher import Teacher
from tierwise.compression.distillation.tensor_files import load_tensors, save_tensors
from tierwise.compression.reporting import Progress
from tierwise.compression.stages import content_key
from tierwise.runtime.errors import BuildError

if TYPE_CHECKING:
    from tierwise.compression.distillation.conversations import Document

SHARD_TOKENS = 16_384
BATCH_TOKENS = 4_096
ROWS_AT_ONCE = 1_024
"""Positions whose logits over the whole vocabulary are held at the same time."""


def capture(
    teacher: Callable[[], Teacher],
    documents: Sequence[Document],
    folder: Path,
    *,
    key: str,
    prompt_share: float,
    prompt_weight: float,
    temperature: float,
    shown: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Lesson]:
    """Lessons with the teacher's sampled logits, from disk as far as they are there.

    Args:
        teacher: Loads it; called only if something is missing.
        documents: What to learn from.
        folder: For the shards.
        key: Stands for the teacher.
        prompt_share, prompt_weight, shown: See `make_lessons`.
        note: Hears about smaller batches and damaged shards.

    Raises:
        DiskFullError: There is no room; what was captured is kept.
        BuildError: Memory does not even suffice for one document at a time.
    """
    say = note or (lambda text: None)
    options = (prompt_share, prompt_weight, temperature, shown, seed)
    shards = list(_shards(documents))
    folder.mkdir(parents=True, exist_ok=True)
    lessons: list[Lesson] = []
    loaded: Teacher | None = None
    room = BATCH_TOKENS
    done, total = 0, sum(len(document.tokens) for document in documents)
    for shard in shards:
        name = content_key(teacher=key, options=options, documents=_digest(shard))
        file = folder / f"signal-{name}.safetensors"
        plain = make_lessons(
            shard,
            prompt_share=prompt_share,
            prompt_weight=prompt_weight,
            shown=shown,
            seed=seed,
        )
        known = load_tensors(file)
        arrays = None if known is None else known[0]
        if arrays is None:
            if file.exists():
                say(f"the teacher's signal in {file.name} is damaged; it is captured again")
            loaded = loaded or teacher()
            arrays, room = _captured(loaded, plain, temperature, seed, room, say)
            save_tensors(file, arrays, {})
        start = 0
        for lesson in plain:
            stop = start + len(lesson.positions)
            signal = SampledLogits(
                arrays["ids"][start:stop],
                arrays["weights"][start:stop],
                arrays["entropy"][start:stop],
                temperature,
            )
            lessons.append(replace(lesson, signal=signal))
            start = stop
        done += sum(len(document.tokens) for document in shard)
        if progress is not None:
            progress(f"{done:,} of {total:,} tokens", done / max(1, total))
    return lessons


def _shards(documents: Sequence[Document]) -> list[list[Document]]:
    out: list[list[Document]] = []
    held = SHARD_TOKENS
    for document in documents:
        if held >= SHARD_TOKENS:
            out.append([])
            held = 0
        out[-1].append(document)
        held += len(document.tokens)
    return out


def _digest(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(np.asarray(document.tokens, dtype=np.int32).tobytes() + b"\0")
        digest.update(np.asarray(document.answer, dtype=bool).tobytes() + b"\1")
        digest.update(np.asarray(document.given, dtype=bool).tobytes() + b"\2")
        digest.update(np.asarray(document.shown, dtype=np.int32).tobytes())
    return digest.hexdigest()


def _captured(
    teacher: Teacher,
    lessons: Sequence[Lesson],
    temperature: float,
    seed: int,
    room: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Tensor], int]:
    """The shard's arrays, and the batch size that memory sufficed for."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[SampledLogits] = []
    start = 0
    while start < len(lessons):
        stop = start + 1
        longest = _length(lessons[start])
        while stop < len(lessons):
            longest = max(longest, _length(lessons[stop]))
            if longest * (stop + 1 - start) > room:
                break
            stop += 1
        try:
            parts += _sketches(teacher, lessons[start:stop], temperature, generator)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if room <= longest:
                raise BuildError(
                    f"the teacher has no memory for a document of {longest} tokens. Close other "
                    "programs and run the same command again: what was captured is kept."
                ) from error
            room = max(longest, room // 2) if stop > start + 1 else longest
            say(f"out of memory: the teacher reads {room:,} tokens at once from here on")
            if teacher.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        start = stop
    return {
        "ids": torch.cat([part.ids for part in parts]),
        "weights": torch.cat([part.weights for part in parts]),
        "entropy": torch.cat([part.entropy for part in parts]),
    }, room


def _sketches(
    teacher: Teacher, lessons: Sequence[Lesson], temperature: float, generator: torch.Generator
) -> list[SampledLogits]:
    """The teacher's sketches of one batch, in the order of its rows."""
    batch = collate(lessons).to(teacher.device)
    hidden = teacher.hidden(batch.teacher_tokens)
    return [
        sample_logits(
            teacher.logits(hidden, rows), temperature=temperature, generator=generator
        ).to(torch.device("cpu"))
        for rows in batch.teacher_rows.split(ROWS_AT_ONCE)
    ]


def _length(lesson: Lesson) -> int:
    """Tokens that the teacher reads."""
    return len(lesson.tokens) + len(lesson.hint)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text
