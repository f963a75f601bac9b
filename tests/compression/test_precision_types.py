"""The table of types against ggml itself, and fallbacks against llama.cpp's quantizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tierwise.compression.precision.header import library
from tierwise.compression.precision.types import (
    FILE_TYPES,
    TENSOR_TYPES,
    TensorType,
    file_type_of,
    fitting,
    tensor_type,
)
from tierwise.compression.quantize import plan_quantization
from tierwise.runtime.errors import BuildError, ConfigError

ALL = pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=list(TENSOR_TYPES))


@ALL
def test_the_table_says_what_ggml_says(kind: TensorType) -> None:
    ggml = library()
    assert ggml.ggml_type_name(kind.number).decode().upper() == kind.name
    assert ggml.ggml_blck_size(kind.number) == kind.block
    assert ggml.ggml_type_size(kind.number) * 8 / kind.block == kind.bits
    if ggml.ggml_quantize_requires_imatrix(kind.number):
        assert kind.needs_imatrix


def test_every_type_that_ggml_quantizes_to_is_in_the_table() -> None:
    ggml = library()
    numbers = {kind.number for kind in TENSOR_TYPES.values()}
    inner = {9, 15, *range(24, 29)}  # q8_1 and q8_K are for activations; then integers and f64
    real = {n for n in range(43) if ggml.ggml_blck_size(n)}
    assert real - inner == numbers


@pytest.mark.parametrize("name", [n for n, k in TENSOR_TYPES.items() if file_type_of(k)])
def test_fallbacks_are_those_of_llama_cpp(tiny_gguf: Path, name: str) -> None:
    """The tiny model's rows have 64 and 128 values."""
    kind = TENSOR_TYPES[name]
    file_type = file_type_of(kind)
    assert file_type is not None
    if kind.block == 128:
        with pytest.raises(ConfigError, match="rows of 64 are no multiple"):
            fitting(kind, 64)
        with pytest.raises(BuildError, match="no tensor type fallback"):
            plan_quantization(tiny_gguf, file_type)
    else:
        plan = plan_quantization(tiny_gguf, file_type)
        assert plan.types["blk.3.ffn_gate.weight"] == fitting(kind, 64).name
        assert (plan.fallbacks > 10) == (kind.block == 256)


def test_sizes_are_those_of_whole_blocks() -> None:
    assert tensor_type("q4_K").bytes(512) == 2 * 144
    assert tensor_type("Q8_0").bytes(64) == 68


def test_widths_that_fit_nothing_become_f16() -> None:
    assert fitting(TENSOR_TYPES["Q4_K"], 48).name == "F16"
    assert fitting(TENSOR_TYPES["Q4_K"], 576).name == "Q5_0"
    assert fitting(TENSOR_TYPES["Q4_K"], 1536).name == "Q4_K"


def test_unknown_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="'Q9_Z'; known are F32"):
        tensor_type("Q9_Z")


def test_file_types_have_numbers_of_their_own() -> None:
    assert len(set(FILE_TYPES.values())) == len(FILE_TYPES)
    assert np.all(np.array(list(FILE_TYPES.values())) >= 0)
