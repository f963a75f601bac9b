"""Where a tier comes from: its parent, what was left out, how it was taught and quantized."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tierwise.runtime.record import Record


class CurvePoint(Record):
    """Training at one step: what had been spent by then, and the loss.

    ``kl`` is KL(teacher ‖ student) in nats per token on held-out text, and ``nll`` the negative
    log-likelihood of replies in it that are known to be right, where they were measured.
    """

    step: int
    tokens: int
    seconds: float
    loss: float
    learning_rate: float
    kl: float | None = None
    nll: float | None = None


class Distillation(Record):
    """How a pruned student was taught by the base.

    Args:
        teacher_sha256: Of the teacher's GGUF file.
        loss: Its name, e.g. "forward_kl".
        steps: Optimizer steps that were taken.
        skipped_steps: Steps that were left out, as their loss or gradient was not finite.
        tokens: That the student was trained on, repetitions counted.
        seconds: Spent on training.
        documents: How many documents came from each source.
        quantization_aware: The type that weights were rounded to in training, e.g. "Q4_0".
        kl_before: KL(teacher ‖ student) on held-out text before the first step.
        kl_after: The same after the last one.
        cross_entropy: Share of the right token in the loss of replies known to be right.
        nll_before, nll_after: Of such replies in held-out text, in nats per token.
        curve: At most some hundred points.
    """

    teacher_sha256: str
    loss: str
    steps: int
    skipped_steps: int = 0
    tokens: int
    seconds: float
    documents: dict[str, int] = Field(default={})
    quantization_aware: str | None = None
    kl_before: float
    kl_after: float
    cross_entropy: float = 0.0
    nll_before: float | None = None
    nll_after: float | None = None
    curve: tuple[CurvePoint, ...] = ()


class Learning(Record):
    """How a tier was taught since it was made, from calls of a decision log.

    Args:
        at: ISO 8601 time in UTC.
        calls: How many were learned.
        calls_key: Stands for those and the held-out ones.
        parent_sha256: Of the tier's file before.
        held_out: Logged calls that both files were judged on.
        before, after: Share of those that each answered rightly.
        training: How it went.
    """

    at: str
    calls: int
    calls_key: str
    parent_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    held_out: int
    before: float
    after: float
    training: Distillation


class Lineage(Record):
    """How a tier was made from the base."""

    origin: Literal["built", "adopted"]
    quantization: str = Field(description="llama.cpp file type, e.g. 'Q4_K_M'")
    pruned_layers: tuple[int, ...] = Field((), description="layer numbers of the base that went")
    imatrix_sha256: str | None = None
    tensor_types: dict[str, int] = Field(default={}, description="tensors per GGML type, counted")
    tensor_overrides: dict[str, str] = Field(
        default={}, description="GGML type by tensor name, where a search gave it one of its own"
    )
    ffn_channels: int | None = Field(default=None, description="per layer, where some were pruned")
    kv_heads: int | None = Field(default=None, description="per layer, where some were pruned")
    distillation: Distillation | None = None
    learning: Learning | None = Field(default=None, description="the latest, where it was taught")
