"""Modules whose weights are stored as small integers, and read as floats when they run.

They take the place of `nn.Linear` and `nn.Embedding`. What they save is memory and disk, not
time: each forward pass rebuilds the matrix in floats (an embedding only the rows it looks up).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

from tierwise.compression.adapter.packing import pack, padded, read_weights, round_weights


class QuantizedWeight(nn.Module):
    """A matrix as packed integers and scales.

    Args:
        rows: Of the matrix.
        columns: Of the matrix.
        bits: 2, 4 or 8.
        group: Columns that share a scale; 0 for a whole row.
        dtype: As which it is read.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, rows: int, columns: int, bits: int, group: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows, self.columns, self.bits, self.group = rows, columns, bits, group
        self.dtype = dtype
        width, size = padded(columns, bits, group)
        codes = torch.zeros(rows, width * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8)
        self.register_buffer("codes", codes)
        scales = torch.zeros(rows, width // size, dtype=torch.float16)
        self.register_buffer("scales", scales)

    def store(self, weight: Tensor, *, search: bool = True) -> None:
        """Rounds ``weight``, shape (rows, columns), and keeps the result."""
        codes, scales = round_weights(weight, self.bits, self.group, search=search)
        self.codes, self.scales = pack(codes, self.bits), scales

    def share(self, other: QuantizedWeight) -> None:
        """Reads from the same memory as another one (tied embeddings)."""
        self.codes, self.scales = other.codes, other.scales

    @property
    def weight(self) -> Tensor:
        """The matrix as it is read, shape (rows, columns)."""
        return read_weights(self.codes, self.scales, self.bits, self.columns).to(self.dtype)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """`.half()`, `.to(dtype)` and the like change how the matrix is read, not the scales."""
        scales, probe = self.scales, fn(torch.zeros((), dtype=self.dtype))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        self.dtype = probe.dtype
        return self


class QuantizedLinear(QuantizedWeight):
    """`nn.Linear` with a quantized weight; the bias stays as it is."""

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group: int,
        *,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(out_features, in_features, bits, group, dtype)
        self.in_features, self.out_features = in_features, out_features
        empty = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None
        self.register_parameter("bias", empty)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., in_features) to (..., out_features)."""
        return F.linear(x, self.weight.to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}"


class QuantizedEmbedding(QuantizedWeight):
    """`nn.Embedding` with a quantized weight: the rows looked up are the only ones read."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bits: int,
        group: int,
        *,
        padding_idx: int | None = None,
        factor: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, bits, group, dtype)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.factor = padding_idx, factor

    def forward(self, ids: Tensor) -> Tensor:
        """Shape (...) to (..., embedding_dim)."""
        rows = read_weights(self.codes[ids], self.scales[ids], self.bits, self.columns)
        return rows.to(self.dtype) * self.factor

    def extra_repr(self) -> str:
        shape = f"{self.num_embeddings}, {self.embedding_dim}"
        return f"{shape}, bits={self.bits}, group={self.group}"
