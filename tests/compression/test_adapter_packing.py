"""Small integers: exact in their packing, bounded in their error, really small on disk."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tierwise.compression.adapter.packing import (
    pack,
    padded,
    read_weights,
    round_weights,
    rounded,
    top_code,
    unpack,
)
from tierwise.compression.adapter.quantized import QuantizedEmbedding, QuantizedLinear


def noise(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_loses_nothing(bits: int) -> None:
    top = top_code(bits)
    every = torch.arange(-top, top + 1, dtype=torch.int8).repeat(9)
    codes = every[: len(every) // 12 * 12].reshape(3, -1)
    packed = pack(codes, bits)
    assert packed.nbytes == codes.numel() * bits // 8
    assert torch.equal(unpack(packed, bits), codes)
    assert torch.equal(unpack(packed[1], bits), codes[1])


def test_four_bits_lie_lowest_first() -> None:
    packed = pack(torch.tensor([[-7, 7, 0, 1]], dtype=torch.int8), 4)
    assert packed.tolist() == [[1 + 15 * 16, 8 + 9 * 16]]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [0, 16, 32])
def test_no_weight_is_off_by_more_than_half_a_step(bits: int, group: int) -> None:
    weight = noise(8, 64) * torch.logspace(-3, 2, 8).unsqueeze(1)
    codes, scales = round_weights(weight, bits, group, search=False)
    assert codes.dtype == torch.int8 and scales.dtype == torch.float16
    read = read_weights(pack(codes, bits), scales, bits, 64)
    steps = scales.float().repeat_interleave(group or 64, dim=1)
    # The scale is rounded to float16, and the largest weight with it.
    slack = 1 + 2.0**-10 * top_code(bits) * 2
    assert bool(((weight - read).abs() <= steps / 2 * slack + 1e-12).all())
    assert torch.equal(read, rounded(weight, bits, group))


def test_searching_scales_only_helps() -> None:
    weight = noise(16, 64)
    errors = []
    for search in (False, True):
        codes, scales = round_weights(weight, 4, 32, search=search)
        errors.append((read_weights(codes, scales, 8, 64) - weight).square().sum(1))
    assert bool((errors[1] <= errors[0] + 1e-6).all())
    assert errors[1].sum() < errors[0].sum()


def test_rounding_what_is_rounded_changes_nothing() -> None:
    for bits in (2, 4, 8):
        once = rounded(noise(4, 32), bits, 16)
        assert torch.allclose(rounded(once, bits, 16), once, rtol=1e-3, atol=1e-6)


def test_odd_widths_are_filled_up() -> None:
    assert padded(30, 4, 32) == (32, 32)
    assert padded(31, 4, 0) == (32, 32)
    assert padded(65, 8, 32) == (96, 32)
    weight = noise(3, 31)
    codes, scales = round_weights(weight, 4, 0)
    assert codes.shape == (3, 32)
    assert read_weights(pack(codes, 4), scales, 4, 31).shape == (3, 31)


@pytest.mark.parametrize("value", [0.0, 1e-12, 1e5])
def test_extreme_matrices_stay_finite(value: float) -> None:
    read = rounded(torch.full((2, 8), value), 4, 8)
    assert bool(read.isfinite().all())
    assert torch.allclose(read, torch.full((2, 8), value), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_linear_layer_answers_as_its_matrix_reads(bits: int) -> None:
    plain = nn.Linear(48, 12)
    stored = QuantizedLinear(48, 12, bits, 16)
    stored.store(plain.weight)
    stored.bias = plain.bias
    x = noise(5, 48)
    assert torch.allclose(stored(x), x @ stored.weight.T + plain.bias, atol=1e-6)
    assert stored.codes.nbytes == 48 * 12 * bits // 8
    if bits == 8:
        assert torch.allclose(stored(x), plain(x), atol=0.05)


def test_an_embedding_reads_only_the_rows_it_needs() -> None:
    plain = nn.Embedding(20, 24, padding_idx=0)
    stored = QuantizedEmbedding(20, 24, 4, 8, padding_idx=0, factor=2.0)
    stored.store(plain.weight)
    ids = torch.tensor([[0, 3], [19, 3]])
    assert torch.equal(stored(ids), stored.weight[ids] * 2)
    assert bool((stored(ids)[0, 0] == 0).all())


def test_changing_the_type_keeps_the_scales() -> None:
    stored = QuantizedLinear(16, 4, 8, 0)
    stored.store(noise(4, 16) * 1e-6)
    codes, scales = stored.codes.clone(), stored.scales.clone()
    stored.to(torch.bfloat16)
    assert stored.weight.dtype == torch.bfloat16 and stored.scales.dtype == torch.float16
    assert stored(noise(2, 16).bfloat16()).dtype == torch.bfloat16
    stored.float()
    assert torch.equal(stored.codes, codes) and torch.equal(stored.scales, scales)
