"""What a GGUF file's header says of its tensors: names, types, shapes and places.

Source: ``ggml/include/gguf.h``; the layout on disk is described in ``docs/gguf.md`` of ggml.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llama_cpp import _ggml
from llama_cpp._ctypes_extensions import load_shared_library

from tierwise.compression.precision.types import TYPE_OF_NUMBER, TensorType
from tierwise.runtime.errors import DamagedModelError, UnsupportedModelError

ALIGNMENT = 32
"""Bytes; what llama.cpp's quantizer pads tensors to (``GGUF_DEFAULT_ALIGNMENT``)."""

_WRITTEN_KEYS = ("general.quantization_version", "general.file_type")
_UINT32_KEY = 8 + 4 + 4  # length of its name, kind of value, value


class _GGUFParams(ctypes.Structure):
    """``struct gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.POINTER(ctypes.c_void_p)))


class _TensorHead(ctypes.Structure):
    """The first fields of ``struct ggml_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("shape", ctypes.c_int64 * 4),
    )


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor.

    Args:
        shape: Innermost first: the first is the width of a row.
        offset: Bytes from the start of the file.
        bytes: Its size there.
    """

    name: str
    kind: TensorType
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def rows(self) -> int:
        """Of all its matrices."""
        return self.shape[1] * self.shape[2] * self.shape[3]

    @property
    def info_bytes(self) -> int:
        """That its entry in the header takes, but for the name."""
        dimensions = max((i + 1 for i, size in enumerate(self.shape) if size > 1), default=1)
        return 8 + 4 + 8 * dimensions + 4 + 8


@dataclass(frozen=True, slots=True)
class Header:
    """Of one file.

    Args:
        bytes: Its length; padding follows, and then the tensors' data.
        tensors: By name, in the file's order.
        absent_bytes: That keys will take which llama.cpp's quantizer writes and the file lacks.
    """

    bytes: int
    tensors: Mapping[str, TensorInfo]
    absent_bytes: int


def read_header(path: Path) -> Header:
    """Reads a header (20 ms where the vocabulary has 49,152 tokens); kept until the file changes.

    Raises:
        DamagedModelError: It is no GGUF file.
        UnsupportedModelError: It has tensors of a type that is not in our table.
    """
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, _size: int, _mtime_ns: int) -> Header:
    ggml = library()
    shapes = ctypes.c_void_p()
    params = _GGUFParams(no_alloc=True, context=ctypes.pointer(shapes))
    file = ggml.gguf_init_from_file(os.fsencode(path), params)
    if not file:
        raise DamagedModelError(f"{str(path)!r} is no GGUF file that can be read; copy it again")
    try:
        start = int(ggml.gguf_get_data_offset(file))
        tensors = {}
        for index in range(ggml.gguf_get_n_tensors(file)):
            raw = ggml.gguf_get_tensor_name(file, index)
            name = raw.decode("utf-8", errors="replace")
            head = _TensorHead.from_address(ggml.ggml_get_tensor(shapes, raw))
            if head.type not in TYPE_OF_NUMBER:
                raise UnsupportedModelError(
                    f"{name!r} of {str(path)!r} has a type (number {head.type}) that cannot be "
                    "quantized; take a base in another type"
                )
            tensors[name] = TensorInfo(
                name=name,
                kind=TYPE_OF_NUMBER[head.type],
                shape=tuple(head.shape),
                offset=start + int(ggml.gguf_get_tensor_offset(file, index)),
                bytes=int(ggml.gguf_get_tensor_size(file, index)),
            )
        infos = sum(info.info_bytes + len(info.name.encode()) for info in tensors.values())
        absent = [key for key in _WRITTEN_KEYS if ggml.gguf_find_key(file, key.encode()) < 0]
        end = _infos_begin(path, start, next(iter(tensors), "")) + infos
        return Header(end, tensors, sum(_UINT32_KEY + len(key) for key in absent))
    finally:
        ggml.gguf_free(file)
        ggml.ggml_free(shapes)


def _infos_begin(path: Path, end: int, first: str) -> int:
    """Where the entries of the tensors begin, of which the first is this."""
    with path.open("rb") as file:
        content = file.read(end)
    name = first.encode()
    return content.rfind(struct.pack("<Q", len(name)) + name)


def file_bytes(source: Header, types: Mapping[str, TensorType], names: Mapping[str, str]) -> int:
    """Size of the file that llama.cpp's quantizer would write.

    Args:
        source: Header of the file that it reads.
        types: Of the tensors that are written, by their names there.
        names: Their names in the source, by those in the file that is written.
    """
    header = source.bytes + source.absent_bytes
    header -= sum(info.info_bytes + len(name.encode()) for name, info in source.tensors.items())
    total = 0
    for name, kind in types.items():
        info = source.tensors[names[name]]
        header += info.info_bytes + len(name.encode())
        total += _padded(kind.bytes(info.shape[0]) * info.rows)
    return _padded(header) + total


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@lru_cache(maxsize=1)
def library() -> Any:
    """ggml's base library, with the types of what is called here and in `ggml`."""
    base = load_shared_library("ggml-base", _ggml.libggml_base_path)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    size, integer = ctypes.c_size_t, ctypes.c_int
    for name, result, *arguments in (
        ("gguf_init_from_file", pointer, text, _GGUFParams),
        ("gguf_free", None, pointer),
        ("gguf_get_n_tensors", number, pointer),
        ("gguf_get_data_offset", size, pointer),
        ("gguf_get_tensor_name", text, pointer, number),
        ("gguf_get_tensor_offset", size, pointer, number),
        ("gguf_get_tensor_size", size, pointer, number),
        ("gguf_find_key", number, pointer, text),
        ("ggml_free", None, pointer),
        ("ggml_get_tensor", pointer, pointer, text),
        ("ggml_type_name", text, integer),
        ("ggml_blck_size", number, integer),
        ("ggml_type_size", size, integer),
        ("ggml_quantize_requires_imatrix", ctypes.c_bool, integer),
        ("ggml_quantize_chunk", size, integer, pointer, pointer, number, number, number, pointer),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    return base
