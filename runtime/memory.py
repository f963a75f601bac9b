"""How many bytes a tier needs before it is loaded, from llama.cpp's own accounting."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tierwise.runtime.context import Context
from tierwise.runtime.errors import ModelNotFoundError
from tierwise.runtime.llama import Model

_MIB = 1024 * 1024
_BUFFER = re.compile(r"(?P<kind>compute|output) buffer size =\s*(?P<mib>[\d.]+) MiB")

VOCABULARY_BYTES_PER_TOKEN = 300
"""Heap bytes of llama.cpp's vocabulary and of the grammar's token trie, per token; measured as
resident bytes of a loaded SmolLM2 (49,152 tokens) less its weights, KV cache and buffers."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that one loaded tier takes, by what takes them."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    vocabulary_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.vocabulary_bytes


def predict_memory(path: Path, n_ctx: int) -> MemoryNeed:
    """What loading ``path`` with a context of ``n_ctx`` tokens will take.

    llama.cpp reserves its graph on a model without data (``no_alloc``), which takes about the
    time of reading the vocabulary (0.1 s) and allocates nothing large. The result is remembered
    by file, size and modification time.

    Raises:
        ModelNotFoundError, DamagedModelError, UnsupportedModelError: The file cannot be loaded.
    """
    if not path.is_file():
        raise ModelNotFoundError(f"there is no model file {str(path)!r}")
    stat = path.stat()
    return _predict(path, n_ctx, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _predict(path: Path, n_ctx: int, size: int, _mtime_ns: int) -> MemoryNeed:
    with Model(path, no_alloc=True) as model:
        with Context(model, n_ctx, threads=1) as context:
            compute = _buffers(context.open_log)
            cells = context.n_ctx
        return MemoryNeed(
            weights_bytes=size,
            kv_bytes=cells * model.kv_bytes_per_token,
            compute_bytes=compute,
            vocabulary_bytes=model.vocab_size * VOCABULARY_BYTES_PER_TOKEN,
        )


def _buffers(log: Iterable[str]) -> int:
    found = (_BUFFER.search(line) for line in log)
    return int(sum(float(match["mib"]) * _MIB for match in found if match))
