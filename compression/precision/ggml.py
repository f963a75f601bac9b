"""The weights of a GGUF file as arrays, and ggml's own rounding of them, without torch.

Source: ``ggml/include/ggml.h`` (``ggml_quantize_chunk``).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tierwise.compression.precision.header import library, read_header
from tierwise.compression.precision.types import TensorType
from tierwise.runtime.errors import DamagedModelError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of a file that its quantizer may give another type.

    Args:
        name: As in the file.
        kind: Its type there.
        width: Values of a row.
        rows: Of all experts together, where it has some.
        experts: How many matrices it holds, each with an importance matrix of its own.
        data: The file's bytes, one row of the tensor each: shape (rows, bytes).
    """

    name: str
    kind: TensorType
    width: int
    rows: int
    experts: int
    data: NDArray[np.uint8]

    @property
    def values(self) -> int:
        return self.rows * self.width

    def floats(self, chosen: slice | NDArray[np.int64] | None = None) -> Floats:
        """The values of the rows that are chosen (all of them): shape (rows, width)."""
        raw = self.data if chosen is None else self.data[chosen]
        return dequantize(self.kind, np.ascontiguousarray(raw), self.width)


def read_weights(path: Path) -> dict[str, Weight]:
    """The file's matrices by name, in its order: what llama.cpp's quantizer may change.

    The data stays in the file, which must not change meanwhile.

    Raises:
        DamagedModelError: It is no GGUF file, or is cut short.
        UnsupportedModelError: It has tensors of a type that is not in our table.
    """
    content = np.memmap(path, dtype=np.uint8, mode="r")
    out = {}
    for info in read_header(path).tensors.values():
        if not _may_change(info.name) or info.rows == 1:
            continue
        if info.offset + info.bytes > content.size:
            raise DamagedModelError(f"{str(path)!r} is cut short; copy it again")
        out[info.name] = Weight(
            name=info.name,
            kind=info.kind,
            width=info.shape[0],
            rows=info.rows,
            experts=info.shape[2],
            data=content[info.offset : info.offset + info.bytes].reshape(info.rows, -1),
        )
    return out


def _may_change(name: str) -> bool:
    """Whether llama.cpp quantizes such a tensor (``tensor_allows_quantization``), of those that
    decoders without recurrence have."""
    return (
        name.endswith("weight") and "_norm.weight" not in name and "ffn_gate_inp.weight" not in name
    )


def dequantize(kind: TensorType, raw: NDArray[np.uint8], width: int) -> Floats:
    """Values of rows as ggml stores them.

    Args:
        raw: Contiguous, shape (rows, bytes of a row).

    Returns:
        Shape (rows, width).
    """
    if kind.name == "F32":
        return raw.view(np.float32).reshape(-1, width)
    if kind.name == "F16":
        return raw.view(np.float16).astype(np.float32).reshape(-1, width)
    if kind.name == "BF16":
        wide = raw.view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(-1, width)
    out = np.empty((raw.shape[0], width), np.float32)
    own = library().ggml_type_name(kind.number).decode()
    function = getattr(library(), f"dequantize_row_{own}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function.restype = None
    function(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def quantize_rows(
    kind: TensorType, values: Floats, importance: Floats | None = None
) -> NDArray[np.uint8]:
    """Rows as llama.cpp's quantizer would write them. Releases Python's lock meanwhile.

    Args:
        values: Shape (rows, width); the width is a multiple of the type's block.
        importance: Per column, shape (width,).

    Returns:
        Shape (rows, bytes of a row).
    """
    rows, width = values.shape
    values = np.ascontiguousarray(values, np.float32)
    out = np.empty((rows, kind.bytes(width)), np.uint8)
    if importance is None and library().ggml_quantize_requires_imatrix(kind.number):
        importance = np.ones(width, np.float32)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    library().ggml_quantize_chunk(
        kind.number,
        values.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        width,
        None if importance is None else importance.ctypes.data,
    )
    return out


def rounded(kind: TensorType, values: Floats, importance: Floats | None = None) -> Floats:
    """Values as they are after quantizing, shape (rows, width)."""
    if kind.name == "F32":
        return values
    return dequantize(kind, quantize_rows(kind, values, importance), values.shape[1])
