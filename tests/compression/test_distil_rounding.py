"""Weights rounded in training are those that llama.cpp stores."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest
import torch
from llama_cpp._ggml import libggml
from torch import nn

from tierwise.compression.distillation.rounding import ROUNDINGS, round_weights, rounded
from tierwise.runtime.errors import ConfigError

TYPES = {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q8_0": gguf.GGMLQuantizationType.Q8_0}


def as_stored(weight: torch.Tensor, name: str) -> torch.Tensor:
    """Through llama.cpp's own quantizer and back."""
    kind = TYPES[name]
    rows, width = weight.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.ascontiguousarray(weight.numpy(), dtype=np.float32)
    out = np.empty((rows, width // block * size), dtype=np.uint8)
    quantize = libggml.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3]
    quantize.argtypes = [*quantize.argtypes, ctypes.c_void_p]
    written = quantize(int(kind), data.ctypes.data, out.ctypes.data, 0, rows, width, None)
    assert written == out.nbytes
    return torch.from_numpy(gguf.dequantize(out, kind))


@pytest.mark.parametrize("name", TYPES)
def test_rounding_is_llama_cpp_s(name: str) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[3, 32:64] = 0
    weight[4, :32] = -weight[4, :32].abs()
    found = ROUNDINGS[name](weight)
    assert torch.allclose(found, as_stored(weight, name), atol=1e-7)
    assert 0 < float((found - weight).abs().max()) < 0.05


@pytest.mark.parametrize("name", TYPES)
def test_rounded_weights_survive_the_file(name: str) -> None:
    """What was trained for the grid stays on it when it is stored as F16 and quantized."""
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    once = ROUNDINGS[name](weight)
    again = as_stored(once.half().float(), name)
    assert float((again - once).norm() / once.norm()) < 1e-3


def test_training_goes_through_the_rounding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32))
    head = model[1]
    inputs = torch.randn(8, 64)
    plain = model[0](inputs)
    with rounded(model, "Q4_0", head):
        hidden = model[0](inputs)
        assert not torch.allclose(hidden, plain)
        with torch.no_grad():
            coarse = nn.functional.linear(inputs, ROUNDINGS["Q4_0"](model[0].weight), model[0].bias)
        assert torch.allclose(hidden, coarse)
        assert torch.allclose(head(plain), nn.functional.linear(plain, head.weight, head.bias))
        hidden.square().sum().backward()
        assert model[0].weight.grad is not None and model[0].weight.grad.abs().min() > 0
    assert torch.equal(model[0](inputs), plain)  # and afterwards it is as it was
    before = head.weight.detach().clone()
    round_weights(model, "Q4_0", head)
    assert torch.allclose(model[0](inputs), hidden) and torch.equal(head.weight, before)


def test_awareness_wins_back_what_rounding_costs() -> None:
    """From trained weights on: some steps with the rounding, and the rounded model is nearer."""
    torch.manual_seed(0)
    teacher, student = nn.Linear(64, 64), nn.Linear(64, 64)
    student.load_state_dict(teacher.state_dict())
    # Channels that move together: what one weight loses, others can make up for.
    inputs = torch.randn(256, 8) @ torch.randn(8, 64)

    def error() -> torch.Tensor:
        return (student(inputs) - teacher(inputs)).square().mean()

    with torch.no_grad(), rounded(student, "Q4_0"):
        rounded_at_once = float(error())
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 300)
        optimizer.zero_grad()
        with rounded(student, "Q4_0"):
            error().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    round_weights(student, "Q4_0")
    assert float(error().detach()) < 0.5 * rounded_at_once


def test_what_cannot_be_rounded() -> None:
    with pytest.raises(ConfigError, match="'Q3_K'; it knows Q4_0, Q8_0"):
        round_weights(nn.Linear(32, 32), "Q3_K")
    with pytest.raises(ConfigError, match="48 input channels"):
        round_weights(nn.Linear(48, 32), "Q4_0")
