"""Weights, headers and rounding, held against the gguf package and llama.cpp's own files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as reference

from tierwise.compression.precision.ggml import quantize_rows, read_weights, rounded
from tierwise.compression.precision.header import read_header
from tierwise.compression.precision.types import TENSOR_TYPES
from tierwise.compression.quantize import quantize
from tierwise.runtime.errors import DamagedModelError

WIDTH = 512


def some_rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float32)


SLOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")
UNKNOWN = ("Q1_0", "Q2_0")  # to the gguf package


@pytest.mark.parametrize("name", [n for n in TENSOR_TYPES if n not in (*SLOW, *UNKNOWN)])
def test_rounding_is_as_the_gguf_package_reads_it(name: str) -> None:
    kind, values = TENSOR_TYPES[name], some_rows()
    raw = quantize_rows(kind, values)
    assert raw.shape == (4, WIDTH * kind.bits / 8)
    theirs = reference(raw, gguf.GGMLQuantizationType(kind.number))
    np.testing.assert_allclose(rounded(kind, values), theirs, rtol=1e-6, atol=1e-6)


def test_more_bits_round_less() -> None:
    values = some_rows()
    names = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
    errors = [float(((rounded(TENSOR_TYPES[n], values) - values) ** 2).mean()) for n in names]
    assert errors == sorted(errors) and errors[0] < 1e-6 < errors[-1]


def test_importance_moves_the_error_to_other_columns() -> None:
    values, importance = some_rows(), np.ones(WIDTH, np.float32)
    importance[::2] = 100.0
    kind = TENSOR_TYPES["Q3_K"]
    plain, steered = ((rounded(kind, values, i) - values) ** 2 for i in (None, importance))
    assert steered[:, ::2].sum() < plain[:, ::2].sum()


@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16", "Q8_0", "Q4_K_M", "Q3_K_M"])
def test_weights_are_read_as_the_file_has_them(
    wide_gguf: Path, tmp_path: Path, file_type: str
) -> None:
    path = tmp_path / "some.gguf"
    quantize(wide_gguf, path, file_type, threads=1)
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    weights = read_weights(path)
    assert set(weights) == {name for name, tensor in theirs.items() if len(tensor.shape) == 2}
    for name in ("token_embd.weight", "blk.1.ffn_down.weight", "blk.5.attn_v.weight"):
        tensor, weight = theirs[name], weights[name]
        expected = reference(tensor.data, tensor.tensor_type)
        assert weight.kind.number == tensor.tensor_type
        np.testing.assert_array_equal(weight.floats(), expected)
        chosen = np.array([0, 3, weight.rows - 1])
        np.testing.assert_array_equal(weight.floats(chosen), expected[chosen])


def test_a_rounded_weight_is_what_llama_cpp_writes(wide_gguf: Path, tmp_path: Path) -> None:
    importance = np.random.default_rng(1).lognormal(0, 2, 512).astype(np.float32)
    name = "blk.2.ffn_down.weight"
    quantize(wide_gguf, tmp_path / "q.gguf", "Q4_K_S", imatrix={name: importance}, threads=1)
    written = read_weights(tmp_path / "q.gguf")[name]
    before = read_weights(wide_gguf)[name]
    np.testing.assert_array_equal(
        written.floats(), rounded(written.kind, before.floats(), importance)
    )


def test_headers_know_where_tensors_lie(wide_gguf: Path) -> None:
    header = read_header(wide_gguf)
    reader = gguf.GGUFReader(wide_gguf)
    assert -(-header.bytes // 32) * 32 == reader.data_offset
    for tensor in reader.tensors:
        info = header.tensors[tensor.name]
        assert (info.offset, info.bytes) == (tensor.data_offset, tensor.n_bytes)


def test_damaged_files_are_named(tmp_path: Path, wide_gguf: Path) -> None:
    content = wide_gguf.read_bytes()
    for name, data in (("no.gguf", b"no model"), ("cut.gguf", content[: len(content) // 2])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DamagedModelError, match=name):
            read_weights(tmp_path / name)
