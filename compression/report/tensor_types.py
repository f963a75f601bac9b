"""Which GGML type each tensor of a GGUF file has, and how many bits a weight takes in it.

llama.cpp's own library is asked: what a type is called and how large it is changes with it.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")

_ORDER = (
    *("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down"),
)
"""Kinds of tensors in the order in which a layer uses them; others follow by name."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's name as in the file, its GGML type in capitals, and that type's bits a weight."""

    tensor: str
    type: str
    bits: float


@dataclass(frozen=True, slots=True)
class TypeMap:
    """The types of a file's weight matrices.

    Args:
        layers: By kind of tensor ("attn_q"), its type by the file's layer number.
        outside: By name, of those that are in no layer ("token_embd").
    """

    layers: Mapping[str, Mapping[int, TensorType]]
    outside: Mapping[str, TensorType]


def read_types(path: Path) -> tuple[TensorType, ...]:
    """Every tensor's type in the file's order; none if it is no GGUF file that can be read."""
    ggml = _library()
    file = ggml.gguf_init_from_file(os.fsencode(path), _GGUFParams(True, None))
    if not file:
        return ()
    try:
        found = []
        for index in range(ggml.gguf_get_n_tensors(file)):
            number = ggml.gguf_get_tensor_type(file, index)
            bits = 8 * ggml.ggml_type_size(number) / ggml.ggml_blck_size(number)
            name = ggml.gguf_get_tensor_name(file, index).decode("utf-8", errors="replace")
            kind = ggml.ggml_type_name(number).decode("ascii", errors="replace").upper()
            found.append(TensorType(name, kind, bits))
        return tuple(found)
    finally:
        ggml.gguf_free(file)


def map_types(tensors: Sequence[TensorType]) -> TypeMap:
    """Sorts matrices by kind and layer. Norms and biases are left out."""
    layers: dict[str, dict[int, TensorType]] = {}
    outside: dict[str, TensorType] = {}
    for tensor in tensors:
        if "norm" in tensor.tensor or not tensor.tensor.endswith(".weight"):
            continue
        found = _LAYER.fullmatch(tensor.tensor)
        if found:
            layers.setdefault(found[2], {})[int(found[1])] = tensor
        elif tensor.tensor != "rope_freqs.weight":
            outside[tensor.tensor.removesuffix(".weight")] = tensor
    known = {kind: place for place, kind in enumerate(_ORDER)}
    order = sorted(layers, key=lambda kind: (known.get(kind, len(known)), kind))
    return TypeMap({kind: layers[kind] for kind in order}, outside)


class _GGUFParams(ctypes.Structure):
    """``struct gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


@lru_cache(maxsize=1)
def _library() -> Any:
    """ggml's base library, with the types of what is called here."""
    from llama_cpp import _ggml
    from llama_cpp._ctypes_extensions import load_shared_library

    base = load_shared_library("ggml-base", _ggml.libggml_base_path)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    for name, result, *arguments in (
        ("gguf_init_from_file", pointer, text, _GGUFParams),
        ("gguf_free", None, pointer),
        ("gguf_get_n_tensors", number, pointer),
        ("gguf_get_tensor_name", text, pointer, number),
        ("gguf_get_tensor_type", ctypes.c_int, pointer, number),
        ("ggml_type_name", text, ctypes.c_int),
        ("ggml_type_size", ctypes.c_size_t, ctypes.c_int),
        ("ggml_blck_size", number, ctypes.c_int),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    return base
