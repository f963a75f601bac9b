"""Sizes of a file's tensors, and which are repacked, against what llama.cpp logs when it loads."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from tiny_models import write_tiny_checkpoint, write_tiny_gguf

from tierwise.compression.export import export_gguf
from tierwise.compression.quantize import quantize
from tierwise.runtime.gpu_layers import choose_gpu_layers, layers_that_fit, weights_by_layer
from tierwise.runtime.llama import Model
from tierwise.runtime.tensors import mapped_bytes, mostly_repacked, read_tensors

MIB = 2**20


def buffers(path: Path) -> dict[str, float]:
    """MiB by kind of buffer, as loading logs them."""
    with Model(path) as model:
        log = "".join(model.load_log)
    return {
        kind: float(mib)
        for kind, mib in re.findall(r"load_tensors: +(\w+) model buffer size = +([\d.]+) MiB", log)
    }


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_0", "Q4_K_M", "IQ4_NL", "Q4_1", "copy"])
def test_tensors_are_kept_where_llama_cpp_keeps_them(
    tmp_path: Path, file_type: str, experts: int
) -> None:
    source = write_tiny_gguf(tmp_path / "a.gguf", width=512, ffn=512, experts=experts)
    path = source
    if file_type != "copy":
        path = tmp_path / "b.gguf"
        quantize(source, path, file_type, threads=1)
    tensors = read_tensors(path)
    logged = buffers(path)
    copies = sum(tensor.repacked_bytes for tensor in tensors) / MIB
    elsewhere = sum(size for kind, size in logged.items() if kind not in ("CPU", "CPU_Mapped"))
    assert copies == pytest.approx(elsewhere, abs=0.02)
    if mostly_repacked(tensors):  # then the file is read, not mapped
        in_place = sum(tensor.bytes for tensor in tensors if tensor.used_in_place)
        assert logged["CPU"] == pytest.approx(in_place / MIB, abs=0.02)
    else:
        assert logged["CPU_Mapped"] == pytest.approx(mapped_bytes(tensors) / MIB, abs=0.02)


def test_embeddings_are_looked_up_where_they_are(tmp_path: Path) -> None:
    # A vocabulary that is a multiple of 32, so that its rows could be repacked.
    checkpoint = write_tiny_checkpoint(tmp_path / "untied", family="llama")
    path = tmp_path / "b.gguf"
    quantize(export_gguf(checkpoint, tmp_path / "a.gguf"), path, "Q4_0", threads=1)
    tensors = read_tensors(path)
    by_name = {tensor.name: tensor for tensor in tensors}
    embeddings = by_name["token_embd.weight"]
    assert embeddings.used_in_place and embeddings.repacked_bytes == 0
    copies = sum(tensor.repacked_bytes for tensor in tensors) / MIB
    assert copies == pytest.approx(buffers(path).get("CPU_REPACK", copies), abs=0.005)


def test_a_file_has_its_tensors(tiny_gguf: Path) -> None:
    tensors = read_tensors(tiny_gguf)
    layers = {tensor.layer for tensor in tensors}
    assert layers == {None, 0, 1, 2, 3}
    by_name = {tensor.name: tensor for tensor in tensors}
    assert by_name["blk.2.ffn_up.weight"].bytes == 64 * 128 * 2  # F16
    assert by_name["blk.2.ffn_norm.weight"].bytes == 64 * 4  # F32
    ends = [tensor.offset + tensor.bytes for tensor in tensors]
    assert max(ends) <= tiny_gguf.stat().st_size


def test_kernels_of_convolutions_are_no_matrices(tmp_path: Path) -> None:
    """As in files of multimodal projectors: llama.cpp aborts where they are to be multiplied."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "clip")
    writer.add_tensor("v.patch_embd.weight", np.zeros((8, 4, 32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (kernel,) = read_tensors(tmp_path / "a.gguf")
    assert kernel.repacked_bytes == 0 and kernel.bytes == 2 * 8 * 4 * 32 * 32


def test_what_is_no_gguf_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    assert read_tensors(path) == ()
    assert mapped_bytes(()) == 0 and not mostly_repacked(())


# --- Layers on the GPU ----------------------------------------------------------------------------


def test_layers_have_their_tensors(tiny_gguf: Path) -> None:
    layers, output = weights_by_layer(read_tensors(tiny_gguf))
    assert len(layers) == 4 and len(set(layers)) == 1
    projections = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128  # q and o, k and v, the feed-forward
    assert layers[0] == projections * 2 + 2 * 64 * 4
    with Model(tiny_gguf, vocab_only=True) as model:
        assert output == model.vocab_size * 64 * 2 + 64 * 4  # the last norm as well


def test_tied_embeddings_are_the_output(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tied", family="smollm")
    tensors = read_tensors(export_gguf(checkpoint, tmp_path / "tied.gguf"))
    sizes = {tensor.name: tensor.bytes for tensor in tensors}
    assert "output.weight" not in sizes
    assert weights_by_layer(tensors)[1] >= sizes["token_embd.weight"]


def test_as_many_layers_go_to_the_gpu_as_fit(tiny_gguf: Path) -> None:
    layers, output = weights_by_layer(read_tensors(tiny_gguf))
    kv, compute = 10_000, 50_000

    def fit(free: int) -> int:
        return layers_that_fit(
            layers, kv_bytes=kv, output_bytes=output, compute_bytes=compute, free_bytes=free
        )

    everything = compute + output + sum(layers) + 4 * kv
    assert fit(everything) == 5 == fit(10 * everything)
    assert fit(everything - 1) == 4  # the first layer stays behind
    assert fit(compute + output + layers[-1] + kv) == 2
    assert fit(compute + output + layers[-1] + kv - 1) == 0  # the output alone is not worth it
    assert fit(compute) == fit(0) == fit(-5) == 0


def test_the_last_layers_go_first() -> None:
    sizes = {"kv_bytes": 0, "output_bytes": 1, "compute_bytes": 0}
    assert layers_that_fit([100, 1, 1], free_bytes=10, **sizes) == 3
    assert layers_that_fit([1, 1, 100], free_bytes=10, **sizes) == 0


def test_without_a_gpu_no_layer_goes_there(tiny_gguf: Path) -> None:
    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("llama.cpp was built for a GPU")
    assert choose_gpu_layers(tiny_gguf, 512) == 0
    assert choose_gpu_layers(tiny_gguf.with_name("gone.gguf"), 512) == 0  # at no cost
