"""Weights as small integers: symmetric, a scale for every group of a row, packed into bytes.

A weight w of a group with the scale s is stored as q = round(w / s), −(2^(b−1) − 1) ≤ q ≤
2^(b−1) − 1, and read as s · q. With s = max|w| / (2^(b−1) − 1) no weight is off by more than
s / 2 (and what the scale's own rounding to float16 adds). `search` tries smaller scales, that
clip the largest weights where the others gain more by it (as in AWQ, arXiv 2306.00978, section
3.2, without activations).
"""

from __future__ import annotations

import torch
from torch import Tensor

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of the largest weight that a search takes as the largest number stored."""


def top_code(bits: int) -> int:
    """The largest integer stored: 1, 7 or 127 with 2, 4 or 8 bits."""
    return int(2 ** (bits - 1)) - 1


def padded(columns: int, bits: int, group: int) -> tuple[int, int]:
    """How many columns are stored for a row of ``columns``, and how many make a group."""
    per_byte = 8 // bits
    group = group or columns
    group = -(-group // per_byte) * per_byte
    return -(-columns // group) * group, group


def round_weights(
    weight: Tensor, bits: int, group: int, *, search: bool = True
) -> tuple[Tensor, Tensor]:
    """The integers and scales that stand for a matrix.

    Args:
        weight: Shape (rows, columns).
        bits: 2, 4 or 8.
        group: Columns that share a scale; 0 for a whole row.
        search: Try the scales of `CLIPS`, and take that of the least squared error.

    Returns:
        Integers, int8, shape (rows, padded columns), and scales, float16, shape (rows, groups).
    """
    rows, columns = weight.shape
    width, group = padded(columns, bits, group)
    values = torch.nn.functional.pad(weight.detach().float(), (0, width - columns))
    values = values.reshape(rows, width // group, group)
    top = top_code(bits)
    largest = values.abs().amax(-1, keepdim=True)
    best, codes = None, torch.zeros_like(values)
    scales = torch.zeros_like(largest)
    for clip in CLIPS if search else CLIPS[:1]:
        # The scale as it will be stored: rounding it later would shift every weight.
        scale = (largest * (clip / top)).clamp(max=65504.0).half().float()
        tried = torch.where(scale > 0, values / scale.clamp_min(1e-30), 0.0)
        tried = tried.round().clamp(-top, top)
        error = (tried * scale - values).square().sum(-1, keepdim=True)
        if best is None:
            best, codes, scales = error, tried, scale
            continue
        better = error < best
        best = torch.where(better, error, best)
        codes, scales = torch.where(better, tried, codes), torch.where(better, scale, scales)
    return codes.reshape(rows, width).to(torch.int8), scales.squeeze(-1).half()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers into bytes: int8 for 8 bits, else uint8 with 8 / bits of them, lowest first.

    Args:
        codes: int8, shape (rows, columns), columns a multiple of 8 / bits.
    """
    if bits == 8:
        return codes.contiguous()
    per_byte = 8 // bits
    raised = (codes.to(torch.int16) + 2 ** (bits - 1)).reshape(codes.shape[0], -1, per_byte)
    shifts = torch.arange(per_byte, device=codes.device, dtype=torch.int16) * bits
    packed: Tensor = (raised << shifts).sum(-1).to(torch.uint8)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """What `pack` was given, for any leading shape: int8, (..., columns)."""
    if bits == 8:
        return packed
    per_byte = 8 // bits
    shifts = torch.arange(per_byte, device=packed.device, dtype=torch.uint8) * bits
    raised = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    codes: Tensor = (raised.to(torch.int8) - 2 ** (bits - 1)).flatten(-2)
    return codes


def read_weights(packed: Tensor, scales: Tensor, bits: int, columns: int) -> Tensor:
    """The numbers that are stored, float32, shape (..., columns)."""
    codes = unpack(packed, bits)
    grouped = codes.reshape(*codes.shape[:-1], scales.shape[-1], -1)
    values: Tensor = (grouped * scales.float().unsqueeze(-1)).flatten(-2)
    return values[..., :columns]


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """A matrix as it reads after it was stored (without `search`), in its own type."""
    codes, scales = round_weights(weight, bits, group, search=False)
    return read_weights(codes, scales, 8, weight.shape[1]).to(weight.dtype)
