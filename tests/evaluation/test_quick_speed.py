"""A call's seconds in a second or two. Nothing is asserted about how long anything takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_tiny_gguf

from tierwise.evaluation.quick_speed import STEPS, quick_speed
from tierwise.runtime.errors import DamagedModelError


def test_both_parts_are_timed(tiny_gguf: Path) -> None:
    speed = quick_speed(tiny_gguf, prompt_tokens=64, reply_tokens=8, threads=1, rounds=1)
    assert speed.prefill_s > 0 and speed.decode_s > 0


def test_a_model_of_a_short_context_reads_less(tmp_path: Path) -> None:
    short = write_tiny_gguf(tmp_path / "short.gguf", layers=1, context=2 * STEPS)
    speed = quick_speed(short, prompt_tokens=300, reply_tokens=40, threads=1, rounds=1)
    assert speed.prefill_s > 0 and speed.decode_s > 0


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(DamagedModelError, match=r"broken\.gguf"):
        quick_speed(broken, prompt_tokens=8, reply_tokens=8, threads=1)
