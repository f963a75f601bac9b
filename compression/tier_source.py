"""What tiers are quantized from: the base, or a student that was pruned and taught by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tierwise.evaluation.texts import demonstration_tokens
from tierwise.runtime.files import FileHashes
from tierwise.runtime.lineage import Distillation
from tierwise.runtime.llama import Model

if TYPE_CHECKING:
    from tierwise.compression.distillation.students import Student

FULL_PRECISION = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TierSource:
    """A GGUF file to quantize from, and how it came to be.

    Args:
        name: Empty for the base, "d26" for a student of 26 layers.
        gguf: Its file. A student's is in full precision.
        sha256: Of the file.
        layers: That it has.
        pruned_layers: Layers of the base that it lacks.
        ffn_channels, kv_heads: Per layer, where some were pruned.
        distillation: How it was taught.
        trained_for: The type that its weights were rounded to in training.
        demonstration_tokens: Of prompts that show it how to call tools.
    """

    name: str
    gguf: Path
    sha256: str
    layers: int
    pruned_layers: tuple[int, ...] = ()
    ffn_channels: int | None = None
    kv_heads: int | None = None
    distillation: Distillation | None = None
    trained_for: str | None = None
    demonstration_tokens: int = 0


def base_source(gguf: Path, sha256: str, layers: int) -> TierSource:
    """The base itself."""
    with Model(gguf, vocab_only=True) as model:
        shown = demonstration_tokens(model)
    return TierSource("", gguf, sha256, layers, demonstration_tokens=shown)


def student_source(student: Student) -> TierSource:
    """A student as it was exported."""
    with Model(student.gguf, no_alloc=True) as model:
        layers, shown = model.layers, demonstration_tokens(model)
    return TierSource(
        name=student.name,
        gguf=student.gguf,
        sha256=FileHashes.shared().sha256(student.gguf),
        layers=layers,
        pruned_layers=student.pruned_layers,
        ffn_channels=student.ffn_channels,
        kv_heads=student.kv_heads,
        distillation=student.distillation,
        trained_for=student.quantization,
        demonstration_tokens=shown,
    )
