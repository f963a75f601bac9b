"""The tensors of a GGUF file: their sizes, and which of them llama.cpp will keep in another layout.

On processors with the right instructions, ggml repacks weights of some types into a layout that
it multiplies faster (``ggml/src/ggml-cpu/repack.cpp``, ``amx/``). Which ones, only this build of
ggml on this processor knows; here it is asked as llama.cpp's loader asks it
(``src/llama-model-loader.cpp``, ``select_weight_buft``).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import llama_cpp as lib
from llama_cpp import _ggml
from llama_cpp._ctypes_extensions import load_shared_library

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_LAYER = re.compile(r"blk\.(\d+)\.")
_CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
_F32, _I32 = 0, 26  # GGML_TYPE_F32, GGML_TYPE_I32
_OPERATIONS_BYTES = 1 << 16  # room for the few tensors of one question to ggml


class _GGUFParams(ctypes.Structure):
    """``struct gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.POINTER(ctypes.c_void_p)))


class _GGMLParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("memory", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class _TensorHead(ctypes.Structure):
    """The first fields of ``struct ggml_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("shape", ctypes.c_int64 * 4),
    )


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Args:
        name: As in the file, e.g. "blk.0.attn_q.weight".
        layer: Number of its layer; None for embeddings, output and the like.
        offset: Bytes from the start of the file's tensor data.
        bytes: Its size there.
        repacked_bytes: Size of the copy in another layout that llama.cpp makes; 0 for none.
        used_in_place: Whether it is also read where the file has it.
    """

    name: str
    layer: int | None
    offset: int
    bytes: int
    repacked_bytes: int
    used_in_place: bool


def read_tensors(path: Path) -> tuple[Tensor, ...]:
    """The file's tensors in its order; none if it is no GGUF file that can be read.

    Reads the header only (20 ms where the vocabulary has 49,152 tokens).
    """
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, _size: int, _mtime_ns: int) -> tuple[Tensor, ...]:
    ggml = _library()
    shapes = ctypes.c_void_p()
    params = _GGUFParams(no_alloc=True, context=ctypes.pointer(shapes))
    file = ggml.gguf_init_from_file(os.fsencode(path), params)
    if not file:
        return ()
    try:
        names = [ggml.gguf_get_tensor_name(file, i) for i in range(ggml.gguf_get_n_tensors(file))]
        repacked = _Repacking(tied=_OUTPUT.encode() not in names)
        tensors = []
        for index, raw in enumerate(names):
            name = raw.decode("utf-8", errors="replace")
            layer = _LAYER.match(name)
            copy = repacked.bytes_of(name, ggml.ggml_get_tensor(shapes, raw))
            tensors.append(
                Tensor(
                    name=name,
                    layer=int(layer[1]) if layer else None,
                    offset=int(ggml.gguf_get_tensor_offset(file, index)),
                    bytes=int(ggml.gguf_get_tensor_size(file, index)),
                    repacked_bytes=copy,
                    used_in_place=not copy or name == _EMBEDDING,
                )
            )
        return tuple(tensors)
    finally:
        ggml.gguf_free(file)
        ggml.ggml_free(shapes)


def mapped_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the file that stay mapped after loading: from the first to the last tensor that
    is used in place, what lies between included."""
    ends = [(t.offset, t.offset + t.bytes) for t in tensors if t.used_in_place]
    return max(end for _, end in ends) - min(start for start, _ in ends) if ends else 0


def mostly_repacked(tensors: Sequence[Tensor]) -> bool:
    """Whether more of the file is copied than used in place.

    Mapping such a file would keep most of it in memory twice. (Where there is a GPU, llama.cpp
    places the weights otherwise, and this is False.)
    """
    if lib.llama_supports_gpu_offload():
        return False
    in_place = sum(tensor.bytes for tensor in tensors if tensor.used_in_place)
    return sum(tensor.repacked_bytes for tensor in tensors) > in_place


class _Repacking:
    """Asks the processor's backend which weights it would rather have in a layout of its own.

    Args:
        tied: Whether the embeddings are the output's weights too.
    """

    def __init__(self, *, tied: bool) -> None:
        self._tied = tied
        self._known: dict[tuple[object, ...], int] = {}

    def bytes_of(self, name: str, tensor: Any) -> int:
        """Bytes of the copy; 0 where the tensor is used as it is."""
        if name == _EMBEDDING and not self._tied:
            return 0  # its rows are looked up, never multiplied
        head = _TensorHead.from_address(tensor)
        shape = tuple(head.shape)
        experts = shape[2] > 1
        key = (head.type, shape)
        if key not in self._known:
            # Vectors and kernels of convolutions are no factors of a product of matrices.
            product = shape[1] > 1 and shape[3] == 1
            self._known[key] = self._ask(tensor, head, experts) if product else 0
        return self._known[key]

    def _ask(self, tensor: Any, head: _TensorHead, experts: bool) -> int:
        ggml = _library()
        with _operations() as context:
            width = head.shape[0]
            if experts:
                rows = ggml.ggml_new_tensor_3d(context, _F32, width, 1, 1)
                chosen = ggml.ggml_new_tensor_2d(context, _I32, 1, 1)
                operation = ggml.ggml_mul_mat_id(context, tensor, rows, chosen)
            else:
                rows = ggml.ggml_new_tensor_2d(context, _F32, width, 1)
                operation = ggml.ggml_mul_mat(context, tensor, rows)
            for kind in _extra_buffer_types():
                buffer = ggml.ggml_backend_buft_alloc_buffer(kind, 0)
                head.buffer = buffer
                try:
                    if ggml.ggml_backend_dev_supports_op(_processor(), operation):
                        return int(ggml.ggml_backend_buft_get_alloc_size(kind, tensor))
                finally:
                    head.buffer = None
                    ggml.ggml_backend_buffer_free(buffer)
        return 0


@contextmanager
def _operations() -> Iterator[Any]:
    """A ``ggml_context`` for tensors without data."""
    ggml = _library()
    context = ggml.ggml_init(_GGMLParams(_OPERATIONS_BYTES, None, True))
    try:
        yield context
    finally:
        ggml.ggml_free(context)


@lru_cache(maxsize=1)
def _extra_buffer_types() -> tuple[int, ...]:
    """Where the processor's backend may put weights, besides plain memory; the best first."""
    ggml = _library()
    backend = ggml.ggml_backend_dev_backend_reg(_processor())
    found = ggml.ggml_backend_reg_get_proc_address(backend, b"ggml_backend_dev_get_extra_bufts")
    if not found:
        return ()
    listing = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
    kinds = listing(found)(_processor())
    out: list[int] = []
    while kinds and (kind := kinds[len(out)]):
        out.append(kind)
    return tuple(out)


@lru_cache(maxsize=1)
def _processor() -> Any:
    find = _ggml.libggml.ggml_backend_dev_by_type
    find.argtypes, find.restype = [ctypes.c_int], ctypes.c_void_p
    return find(_CPU)


@lru_cache(maxsize=1)
def _library() -> Any:
    """ggml's base library, with the types of what is called here."""
    # Windows finds a symbol only in the very library that defines it.
    base = load_shared_library("ggml-base", _ggml.libggml_base_path)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    for name, result, *arguments in (
        ("gguf_init_from_file", pointer, text, _GGUFParams),
        ("gguf_free", None, pointer),
        ("gguf_get_n_tensors", number, pointer),
        ("gguf_get_tensor_name", text, pointer, number),
        ("gguf_get_tensor_offset", ctypes.c_size_t, pointer, number),
        ("gguf_get_tensor_size", ctypes.c_size_t, pointer, number),
        ("ggml_init", pointer, _GGMLParams),
        ("ggml_free", None, pointer),
        ("ggml_get_tensor", pointer, pointer, text),
        ("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, number, number),
        ("ggml_new_tensor_3d", pointer, pointer, ctypes.c_int, number, number, number),
        ("ggml_mul_mat", pointer, pointer, pointer, pointer),
        ("ggml_mul_mat_id", pointer, pointer, pointer, pointer, pointer),
        ("ggml_backend_buft_alloc_buffer", pointer, pointer, ctypes.c_size_t),
        ("ggml_backend_buft_get_alloc_size", ctypes.c_size_t, pointer, pointer),
        ("ggml_backend_buffer_free", None, pointer),
        ("ggml_backend_dev_backend_reg", pointer, pointer),
        ("ggml_backend_dev_supports_op", ctypes.c_bool, pointer, pointer),
        ("ggml_backend_reg_get_proc_address", pointer, pointer, text),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    return base
