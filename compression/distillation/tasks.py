"""What the parts of distillation tell each other, in files of a folder. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tierwise.compression.distillation.config import DistillConfig, StudentRecipe
from tierwise.runtime.lineage import CurvePoint

TASK, RESULT = "task.json", "result.json"
DOCUMENTS = "documents.safetensors"
WEIGHTS = "model.safetensors"
LESSONS, HELD_OUT = "lessons.safetensors", "held_out.safetensors"


class CaptureTask(BaseModel):
    """See `preparation.capture_lessons`; ``key`` stands for the teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: DistillConfig
    teacher: Path
    key: str


class PruneTask(BaseModel):
    """See `preparation.prune_student`.

    Args:
        recipe: What should stay.
        parent: Folder of the checkpoint to prune.
        parents: The base's layer that each of the parent's came from.
        base_layers, base_ffn, base_kv_heads: Layers of the base, and channels of its MLPs and KV
            heads of each.
        held_out: File of lessons to choose layers on.
        lessons: File of those to refit narrowed layers on.
        protected: Layers at either end that stay.
        target: Folder for the pruned checkpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: StudentRecipe
    parent: Path
    parents: tuple[int, ...]
    base_layers: int
    base_ffn: int
    base_kv_heads: int
    held_out: Path
    lessons: Path
    protected: int = 2
    target: Path


class Pruned(BaseModel):
    """What `preparation.prune_student` did.

    Args:
        parents: The base's layer that each of the student's came from.
        ffn_channels, kv_heads: Per layer, where some went.
        removals: Of the base's layers in order, each with the KL after it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parents: tuple[int, ...]
    ffn_channels: int | None
    kv_heads: int | None
    removals: tuple[tuple[int, float], ...]


class Job(BaseModel):
    """What `job.run_job` trains.

    Args:
        config: See `DistillConfig`.
        seconds, steps: When to stop (`Limits`).
        aware: Type that weights are rounded to towards the end.
        parents: The teacher's layer that each of the student's came from.
        ends: Tokens that end a reply.
        teacher: Folder of its checkpoint.
        start: Folder of the student's checkpoint before training.
        lessons, held_out: Files of `lessons.pack`.
        trained: Folder for the student's checkpoint after training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: DistillConfig
    seconds: float
    steps: int | None
    aware: str | None
    parents: tuple[int, ...]
    ends: tuple[int, ...]
    teacher: Path
    start: Path
    lessons: Path
    held_out: Path
    trained: Path


class Counters(BaseModel):
    """How far a run has come.

    Args:
        step: Optimizer steps, those that were skipped included.
        epoch, position: The next step's place in the data.
        tokens: That were learned from.
        seconds: Of training.
        skipped: Steps whose loss or gradient was not finite.
        skipped_in_row: The latest of them without one between that was.
        best_kl: Least KL on held-out text so far, in the current phase.
        first_kl: Before the first step.
        last_kl: The latest one.
        first_nll, last_nll: Of replies known to be right, likewise.
        stopped: Why the run ended before its time, if it did.
        weights_sha256: Of the trained checkpoint's file, once it is written.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0
    best_kl: float | None = None
    first_kl: float | None = None
    last_kl: float | None = None
    first_nll: float | None = None
    last_nll: float | None = None
    stopped: str | None = None
    finished: bool = False
    curve: list[CurvePoint] = []
    weights_sha256: str = ""
