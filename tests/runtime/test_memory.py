"""Predicted bytes against what llama.cpp really allocates."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from tiny_models import write_scripted_gguf, write_tiny_gguf

from tierwise.runtime.context import Context
from tierwise.runtime.errors import DamagedModelError, ModelNotFoundError
from tierwise.runtime.llama import Model
from tierwise.runtime.memory import predict_memory


def allocated(path: Path, n_ctx: int) -> tuple[int, int]:
    """Bytes of the KV cache and of the compute and output buffers, as a real context logs them."""
    with Model(path) as model, Context(model, n_ctx, threads=1) as context:
        log = "".join(context.open_log)
    sizes = {
        kind: sum(float(mib) for mib in re.findall(rf"{kind} buffer size = *([\d.]+) MiB", log))
        for kind in ("KV", "compute", "output")
    }
    assert sizes["KV"] > 0 and sizes["compute"] > 0
    return round(sizes["KV"] * 2**20), round((sizes["compute"] + sizes["output"]) * 2**20)


@pytest.mark.parametrize("n_ctx", [256, 1000, 2048])
@pytest.mark.parametrize("kind", ["tiny", "wide", "scripted"])
def test_the_prediction_is_what_is_allocated(tmp_path: Path, kind: str, n_ctx: int) -> None:
    path = tmp_path / "model.gguf"
    if kind == "scripted":
        write_scripted_gguf(path, "hi")  # heads of their own width
    elif kind == "wide":
        write_tiny_gguf(path, width=256, heads=8, kv_heads=8, layers=2, context=2048)
    else:
        write_tiny_gguf(path, context=2048)
    need = predict_memory(path, n_ctx)
    kv, compute = allocated(path, n_ctx)
    rounding = 0.02 * 2**20  # the log has two decimals
    assert need.kv_bytes == pytest.approx(kv, abs=rounding)
    assert need.compute_bytes == pytest.approx(compute, abs=rounding)
    assert need.weights_bytes == path.stat().st_size
    assert need.vocabulary_bytes > 0
    assert need.total_bytes == (
        need.weights_bytes + need.kv_bytes + need.compute_bytes + need.vocabulary_bytes
    )


def test_a_longer_context_needs_more(tiny_gguf: Path) -> None:
    short, long = predict_memory(tiny_gguf, 256), predict_memory(tiny_gguf, 512)
    assert long.kv_bytes == 2 * short.kv_bytes
    assert long.weights_bytes == short.weights_bytes


def test_a_changed_file_is_predicted_anew(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", layers=2)
    before = predict_memory(path, 256)
    shutil.copy(write_tiny_gguf(tmp_path / "b.gguf", layers=4), path)
    assert predict_memory(path, 256).kv_bytes == 2 * before.kv_bytes
    # Of the same size: its time tells.
    path.write_bytes(b"\0" * path.stat().st_size)
    os.utime(path, ns=(0, 1_000))
    with pytest.raises(DamagedModelError):
        predict_memory(path, 256)


def test_what_cannot_be_loaded_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        predict_memory(tmp_path / "nowhere.gguf", 256)
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(DamagedModelError, match="magic"):
        predict_memory(tmp_path / "text.gguf", 256)
