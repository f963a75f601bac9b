"""What a change of some weights does to the model's answers: real KL, without writing a file.

A model in F16 is loaded once. ggml's tensors are small records with a pointer to their values;
for a probe the pointers of some are turned to other values, the text is read, and they are turned
back. Each probe costs one reading of the text and nothing else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import llama_cpp as lib
import numpy as np
from llama_cpp._ggml import libggml
from numpy.typing import NDArray

from tierwise.compression.activations import _Tensor as Tensor
from tierwise.compression.quantize import quantize
from tierwise.compression.stages import Stages
from tierwise.runtime.context import Chunk, Context
from tierwise.runtime.errors import BuildError, ConfigError, UnsupportedModelError
from tierwise.runtime.files import FileHashes
from tierwise.runtime.llama import Model
from tierwise.runtime.tensors import read_tensors

OUTPUT_STEP = 2
"""Answers are compared at every so many-th token: the last layer's matrix is a fifth of a small
model's work, and neighbours tell much the same."""

_OPERATIONS = (b"MUL_MAT", b"MUL_MAT_ID", b"GET_ROWS")
_TYPES = {0: np.float32, 1: np.float16}


class Probe:
    """A model whose weights can be changed for the time of one reading.

    Args:
        path: A GGUF file in F16 or F32 (`quantize` makes one); it must not change meanwhile.
        documents: Token ids; each is read from an empty context and cut to ``longest``.
        threads: For llama.cpp.
        longest: Tokens of a document that are read.

    Raises:
        ConfigError: There is no document of two tokens or more.
        UnsupportedModelError: llama.cpp keeps the weights in a layout that cannot be changed.
    """

    def __init__(
        self, path: Path, documents: Sequence[Sequence[int]], *, threads: int, longest: int = 256
    ) -> None:
        self._documents = [list(document[:longest]) for document in documents]
        self._documents = [document for document in self._documents if len(document) > 1]
        if not self._documents:
            raise ConfigError("probing needs at least one document of two tokens or more")
        if repacked := [t.name for t in read_tensors(path) if t.repacked_bytes]:
            raise UnsupportedModelError(
                f"llama.cpp keeps {repacked[0]!r} of {str(path)!r} in a layout of its own on this "
                "machine, so it cannot be probed; use a file in F32"
            )
        self._model = Model(path, gpu_layers=0)
        try:
            self._tensors = _weights_of(self._model)
            self._context = Context(
                self._model,
                max(map(len, self._documents)),
                threads=threads,
                all_logits=True,
            )
        except BaseException:
            self._model.close()
            raise
        self._base = [self._read(document).copy() for document in self._documents]
        self._shares = [_softmax(logits) for logits in self._base]

    @property
    def names(self) -> list[str]:
        """Of the tensors that can be changed."""
        return list(self._tensors)

    @property
    def tokens(self) -> int:
        """That each probe reads."""
        return sum(map(len, self._documents))

    def loss(self, values: Mapping[str, NDArray[np.floating[Any]]]) -> float:
        """Mean KL (nats) of the model from itself with other values in some tensors.

        Args:
            values: By tensor name, as many as the tensor has.
        """
        with self._changed(values):
            total = count = 0.0
            for document, base, shares in zip(
                self._documents, self._base, self._shares, strict=True
            ):
                kl = _kl(shares, base, self._read(document))
                total += float(kl.sum(dtype=np.float64))
                count += kl.size
        return max(0.0, total / count)

    def _read(self, document: list[int]) -> NDArray[np.float32]:
        """Logits at every `OUTPUT_STEP`-th token, shape (n, vocab)."""
        context = self._context
        context.truncate(0)
        rows = []
        for start in range(0, len(document), context.batch_size):
            part = document[start : start + context.batch_size]
            context.run([Chunk(0, start, part, len(part))])
            rows.append(context.batch_logits(len(part))[::OUTPUT_STEP].copy())
        return np.concatenate(rows)

    @contextmanager
    def _changed(self, values: Mapping[str, NDArray[np.floating[Any]]]) -> Iterator[None]:
        before: list[tuple[Any, int]] = []
        keep = []
        try:
            for name, floats in values.items():
                tensor = self._tensors[name]
                array = np.ascontiguousarray(floats, _TYPES[tensor.type])
                if array.nbytes != libggml.ggml_nbytes(ctypes.addressof(tensor)):
                    raise BuildError(
                        f"{name!r} was given {array.size:,} values, which is not what it has"
                    )
                keep.append(array)
                before.append((tensor, tensor.data))
                tensor.data = array.ctypes.data
            yield
        finally:
            for tensor, data in before:
                tensor.data = data

    def close(self) -> None:
        """Frees the model."""
        self._context.close()
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def probing(
    source: Path, documents: Sequence[Sequence[int]], stages: Stages, *, threads: int
) -> Iterator[Probe]:
    """A probe of a file of any type, by way of one in F16 that is gone afterwards.

    Raises:
        DiskFullError: There is no room for it.
    """
    sha256 = FileHashes.shared().sha256(source)
    path = stages.file("probe", sha256[:16], ".gguf")
    try:
        quantize(source, path, "F16", threads=threads)
        if any(tensor.repacked_bytes for tensor in read_tensors(path)):
            quantize(source, path, "F32", threads=threads)
        with Probe(path, documents, threads=threads) as probe:
            yield probe
    finally:
        path.unlink(missing_ok=True)


def _weights_of(model: Model) -> dict[str, Any]:
    """ggml's records of the model's matrices by name, as two tokens' graph shows them."""
    found: dict[str, Any] = {}

    def on_node(pointer: int, ask: bool, _user_data: Any) -> bool:
        if ask and libggml.ggml_op_desc(pointer) in _OPERATIONS:
            source = Tensor.from_address(pointer).src[0].contents
            name = source.name.decode(errors="replace")
            if name.endswith("weight") and source.type in _TYPES:
                found[name] = source
        return not ask

    callback = lib.ggml_backend_sched_eval_callback(on_node)
    with Context(model, 32, threads=1, on_tensor=callback) as context:
        context.run([Chunk(0, 0, [0, 0], 1)])
    return found


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shares: NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _kl(
    shares: NDArray[np.float32], base: NDArray[np.float32], other: NDArray[np.float32]
) -> NDArray[np.float32]:
    """KL per token. With d the change of the logits and p the base's shares it is
    log Σ p·e^d − Σ p·d; so small changes do not drown in rounding.

    Args:
        shares, base, other: Shape (n, vocab).
    """
    change = other - base
    mean = np.einsum("ij,ij->i", shares, change)
    change -= mean[:, None]
    np.expm1(change, out=change)
    out: NDArray[np.float32] = np.log1p(np.einsum("ij,ij->i", shares, change))
    return out
