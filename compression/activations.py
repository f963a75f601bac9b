"""Looks inside a running GGUF model: importance matrix and block influence, without torch.

llama.cpp calls back for every node of its graph (``cb_eval``). From the inputs of the weight
matrices comes the importance matrix that its quantizer wants (the mean squared activation per
input channel, as in llama.cpp's ``imatrix`` tool); from the hidden states between the layers
comes each layer's block influence, 1 − cos(input, output) (Men et al., arXiv 2403.03853, eq. 1).
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
from llama_cpp._ggml import libggml
from numpy.typing import NDArray

from tierwise.runtime.context import Context
from tierwise.runtime.errors import UnsupportedModelError
from tierwise.runtime.files import disk_full_named
from tierwise.runtime.llama import Model

_F32 = 0
_PREFIX = "imatrix/"


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` (ggml.h). Only the fields read here have names of their own."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]

libggml.ggml_op_desc.argtypes = [ctypes.c_void_p]
libggml.ggml_op_desc.restype = ctypes.c_char_p
libggml.ggml_nbytes.argtypes = [ctypes.c_void_p]
libggml.ggml_nbytes.restype = ctypes.c_size_t
libggml.ggml_backend_tensor_get.argtypes = [
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
]
libggml.ggml_backend_tensor_get.restype = None


@dataclass(frozen=True, slots=True)
class Activations:
    """What a pass over calibration text showed.

    Args:
        imatrix: Mean squared activation per input channel, shape (width,), by tensor name; of a
            mixture's experts one after the other, shape (experts · width,), each from the tokens
            that came to it. One to which none came has the mean of the others.
        block_influence: Per layer, 0 for one that changes nothing; NaN for the first and the
            last, whose input or output llama.cpp does not show.
        tokens: How many were read.
    """

    imatrix: dict[str, NDArray[np.float32]]
    block_influence: NDArray[np.float64]
    tokens: int

    @property
    def imatrix_sha256(self) -> str:
        """Of the importance matrix: tensor names and values."""
        digest = hashlib.sha256()
        for name, values in sorted(self.imatrix.items()):
            digest.update(name.encode() + b"\0" + values.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Writes them as a NumPy archive, whole or not at all."""
        part = path.with_name(path.name + ".part")
        arrays: dict[str, Any] = {f"{_PREFIX}{k}": v for k, v in self.imatrix.items()}
        arrays |= {"tokens": self.tokens, "influence": self.block_influence}
        try:
            with disk_full_named(path), part.open("wb") as file:
                np.savez(file, sha256=self.imatrix_sha256, **arrays)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def load_activations(path: Path) -> Activations | None:
    """What `Activations.save` wrote; None where there is nothing, or something damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            names = [name for name in data.files if name.startswith(_PREFIX)]
            imatrix = {name.removeprefix(_PREFIX): data[name] for name in names}
            found = Activations(imatrix, data["influence"], int(data["tokens"]))
            return found if found.imatrix_sha256 == str(data["sha256"]) else None
    except Exception:  # noqa: BLE001 - a damaged archive fails in a dozen ways, down to TypeError
        return None


def observe(
    path: Path,
    documents: Sequence[str],
    *,
    threads: int,
    mapped: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Activations:
    """Runs the model over texts and collects its activations.

    Args:
        path: A GGUF file.
        documents: Each is read from an empty context, cut to 1,024 tokens.
        mapped: As of `Model`.
        progress: Called with what is done and its share in 0..1.

    Raises:
        UnsupportedModelError: The model's activations are not F32.
    """
    collector = _Collector()
    longest = 1024
    with (
        Model(path, mapped=mapped) as model,
        Context(
            model,
            min(longest, model.context_tokens),
            threads=threads,
            all_logits=True,  # otherwise llama.cpp skips the last layer's rows it need not output
            on_tensor=collector.callback,
        ) as context,
    ):
        total = 0
        for number, document in enumerate(documents):
            tokens = model.tokenize(document)[: context.n_ctx]
            if not tokens:
                continue
            context.truncate(0)
            try:
                context.decode(tokens, 0)
            finally:
                if collector.error is not None:
                    raise collector.error
            total += len(tokens)
            if progress is not None:
                progress(f"{total:,} tokens", (number + 1) / len(documents))
        return Activations(collector.imatrix(), collector.influence(model.layers), total)


class _Collector:
    """Receives every graph node, first as a question (``ask``), then with its data."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        """By weight, shape (matrices, width): one matrix, or one for each expert."""
        self._counts: dict[str, NDArray[np.int64]] = {}
        """Rows that each matrix was multiplied by."""
        self._cosines: dict[int, float] = {}
        self._cosine_counts: dict[int, int] = {}
        self._hidden: tuple[int, NDArray[np.float32]] | None = None
        self._last: tuple[tuple[int, int | None], NDArray[np.float64], int] | None = None
        self.error: BaseException | None = None
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)

    def _on_node(self, pointer: int, ask: bool, _user_data: Any) -> bool:
        tensor = _Tensor.from_address(pointer)
        try:
            weight = self._weight_of(pointer, tensor)
            layer = _layer_output(tensor.name)
            if not ask:
                if weight is not None and tensor.src[2]:
                    self._add_to_experts(weight, *(tensor.src[i].contents for i in range(3)))
                elif weight is not None:
                    self._add_input(weight, tensor.src[1].contents)
                elif layer is not None:
                    self._last = None  # the next batch may reuse what this one computed in
                    self._add_hidden(layer, _rows(tensor))
        except BaseException as error:  # noqa: BLE001 - ctypes would print it and go on
            self.error = error
            return False
        return weight is not None or layer is not None if ask else True

    @staticmethod
    def _weight_of(pointer: int, tensor: _Tensor) -> str | None:
        """The name of the layer weight that this node multiplies by, if it does."""
        if libggml.ggml_op_desc(pointer) not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return None
        name = tensor.src[0].contents.name.decode()
        return name if name.startswith("blk.") and name.endswith(".weight") else None

    def _add_input(self, name: str, source: _Tensor) -> None:
        # Queries, keys and values have one input, gate and up another: each is summed up once.
        here = (ctypes.addressof(source), source.data)
        if self._last is None or self._last[0] != here:
            rows = _rows(source)
            # In 32 bits over the rows of one batch, in 64 over batches.
            sums = np.einsum("ij,ij->j", rows, rows).astype(np.float64)
            self._last = here, sums, len(rows)
        _, squares, count = self._last
        self._add(name, squares[None], np.array([count]))

    def _add_to_experts(self, name: str, experts: _Tensor, source: _Tensor, ids: _Tensor) -> None:
        """Of inputs of shape (tokens, 1 or used, width), one for all experts that a token goes to
        or one for each, and the numbers of those experts, shape (tokens, used)."""
        chosen = _numbers(ids)
        squares = np.square(_rows(source)).reshape(len(chosen), -1, source.ne[0])
        each = np.broadcast_to(squares, (*chosen.shape, squares.shape[2]))
        rows = each.reshape(chosen.size, -1)
        sums = np.zeros((experts.ne[2], source.ne[0]))
        counts = np.bincount(chosen.ravel(), minlength=len(sums))
        for expert in counts.nonzero()[0]:
            sums[expert] = rows[chosen.ravel() == expert].sum(axis=0)
        self._add(name, sums, counts)

    def _add(self, name: str, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        if name in self._sums:
            self._sums[name] += sums
            self._counts[name] += counts
        else:
            self._sums[name], self._counts[name] = sums.copy(), counts.copy()

    def _add_hidden(self, layer: int, after: NDArray[np.float32]) -> None:
        before, self._hidden = self._hidden, (layer, after)
        if before is None or before[0] != layer - 1 or before[1].shape != after.shape:
            return
        dots = np.einsum("ij,ij->i", before[1], after, dtype=np.float64)
        norms = np.linalg.norm(before[1], axis=1) * np.linalg.norm(after, axis=1)
        cosines = dots / np.maximum(norms, 1e-12)
        self._cosines[layer] = self._cosines.get(layer, 0.0) + float(cosines.sum())
        self._cosine_counts[layer] = self._cosine_counts.get(layer, 0) + len(after)

    def imatrix(self) -> dict[str, NDArray[np.float32]]:
        found = {}
        for name, sums in self._sums.items():
            counts = self._counts[name]
            means = sums / np.maximum(counts, 1)[:, None]
            means[counts == 0] = sums.sum(axis=0) / counts.sum()
            found[name] = means.astype(np.float32).ravel()
        return found

    def influence(self, layers: int) -> NDArray[np.float64]:
        out = np.full(layers, np.nan)
        for layer, cosines in self._cosines.items():
            out[layer] = 1.0 - cosines / self._cosine_counts[layer]
        return out


def _layer_output(name: bytes) -> int | None:
    return int(name[6:]) if name.startswith(b"l_out-") and name[6:].isdigit() else None


def _numbers(tensor: _Tensor) -> NDArray[np.int32]:
    """A copy of a 32-bit integer tensor, shape (rows, columns); its rows may lie apart."""
    raw = np.empty(libggml.ggml_nbytes(ctypes.addressof(tensor)), dtype=np.uint8)
    libggml.ggml_backend_tensor_get(ctypes.addressof(tensor), raw.ctypes.data, 0, raw.size)
    shape, strides = (tensor.ne[1], tensor.ne[0]), (tensor.nb[1], tensor.nb[0])
    return np.ndarray(shape, np.int32, raw.data, strides=strides).copy()


def _rows(tensor: _Tensor) -> NDArray[np.float32]:
    """A copy of an F32 tensor as rows, shape (tokens, width)."""
    width = tensor.ne[0]
    if tensor.type != _F32:
        raise UnsupportedModelError(
            f"the activations of {tensor.name.decode()!r} are not F32, so they cannot be collected"
        )
    size = libggml.ggml_nbytes(ctypes.addressof(tensor))
    flat = np.empty(size // 4, dtype=np.float32)
    libggml.ggml_backend_tensor_get(ctypes.addressof(tensor), flat.ctypes.data, 0, size)
    return flat.reshape(-1, width)
