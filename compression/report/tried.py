"""What a build remembers of every candidate that it tried, for the report to draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from tierwise.runtime.files import write_atomically
from tierwise.runtime.record import Record

TRIED = "tried.json"
"""Beside ``family.json``, so that a report can be made again."""


class Tried(Record):
    """One candidate of a build. ``None`` means that it went before that was measured.

    Args:
        name: As of the tier that it is, or would have been.
        bytes: Size of its file.
        prefill_s: Seconds for the prompt of the reference call of `compression.front`.
        decode_s: Seconds for its reply.
        seconds: Of the whole call, by which candidates were compared.
        kl_mean: KL(base ‖ candidate) in nats per token.
        top1: Share of tokens on which it agrees with the base's likeliest.
        layers: That it has.
        quantization: llama.cpp file type, or what a searched mix is called.
        kept: Whether it became a tier.
        reason: Why it was not kept; may be empty for one that was.
    """

    name: str
    bytes: int | None = Field(default=None, ge=0)
    prefill_s: float | None = None
    decode_s: float | None = None
    seconds: float | None = None
    kl_mean: float | None = None
    top1: float | None = None
    layers: int | None = None
    quantization: str = ""
    kept: bool
    reason: str = ""


class _Kept(Record):
    """The file's content."""

    tried: tuple[Tried, ...]


def save_tried(folder: Path, tried: Sequence[Tried]) -> Path:
    """Keeps the candidates beside the family.

    Raises:
        DiskFullError: There is no room for it.
    """
    path = folder / TRIED
    write_atomically(path, _Kept(tried=tuple(tried)).model_dump_json(indent=2) + "\n")
    return path


def load_tried(folder: Path) -> tuple[Tried, ...]:
    """The candidates of the folder's build; none where they are unknown or the file is damaged."""
    try:
        text = (folder / TRIED).read_text(encoding="utf-8")
        return _Kept.model_validate_json(text).tried
    except (OSError, ValidationError, UnicodeDecodeError):
        return ()
