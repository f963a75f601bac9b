"""How many bytes a tier needs before it is loaded, from llama.cpp's own accounting."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from tierwise.runtime.context import Context, KVType, keeps_apart
from tierwise.runtime.errors import ModelNotFoundError, OutOfMemoryError
from tierwise.runtime.llama import Model
from tierwise.runtime.scheduler import OUTPUTS, SEQUENCES
from tierwise.runtime.tensors import mapped_bytes, mostly_repacked, read_tensors

_MIB = 1024 * 1024
_COMPUTE = re.compile(r"compute buffer size =\s*([\d.]+) MiB")
_OUTPUT = re.compile(r"output buffer size =\s*([\d.]+) MiB")
# With sliding-window layers there are two caches. Of the buffers themselves, "no_alloc" says 0.
_KV = re.compile(r"llama_(?:kv_cache|memory_recurrent): size =\s*([\d.]+) MiB")
_MERGES = re.compile(r"n_merges\s*= (\d+)")

# Heap bytes of llama.cpp's vocabulary and of the grammar's token trie, measured on fourteen
# vocabularies of 32,000 to 262,144 tokens (Llama 2 and 3, Qwen 2 and 3.5, Gemma 4, Phi 3, SmolLM2
# and others): 155 a token for llama.cpp and 370 to 430 for the trie, then the merges.
TOKEN_BYTES = 580
MERGE_BYTES = 115

OVERHEAD_BYTES = 3 * _MIB
"""The compute graph, descriptions of tensors and what malloc cannot give back."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that one loaded tier takes, by what takes them; `total_bytes` adds `OVERHEAD_BYTES`.

    Args:
        weights_bytes: What stays mapped of the file (or was read from it, see `mostly_repacked`).
        repacked_bytes: Copies of weights in the layout that this processor multiplies fastest.
        kv_bytes: The KV cache.
        compute_bytes: Buffers for intermediate results and logits.
        vocabulary_bytes: Tokens, merges, and the grammar's token trie.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    vocabulary_bytes: int
    repacked_bytes: int

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.repacked_bytes
            + self.kv_bytes
            + self.compute_bytes
            + self.vocabulary_bytes
            + OVERHEAD_BYTES
        )


def predict_memory(
    path: Path,
    n_ctx: int,
    *,
    kv_type: KVType = "f16",
    slots: int = 1,
    outputs: int = OUTPUTS,
) -> MemoryNeed:
    """What the process will hold once ``path`` is loaded and has answered, to within 5 %.

    llama.cpp reserves its graph on a model without data (``no_alloc``), which takes about the
    time of reading the vocabulary (0.1 s) and allocates nothing large. That is remembered by
    file, size and modification time; and for twice the context, four times and so on up to what
    the model was trained for, so that a conversation that grows never waits for it again.

    Args:
        path: The GGUF file.
        n_ctx: Tokens of context.
        kv_type: How keys and values are stored.
        slots: Calls that are answered at once, where they are kept apart (`keeps_apart`).
        outputs: Most tokens of a batch whose logits are wanted.

    Raises:
        ModelNotFoundError, DamagedModelError, UnsupportedModelError: The file cannot be loaded,
            or not with that ``kv_type``.
    """
    status = None
    with suppress(OSError):
        status = path.stat()
    if status is None or not S_ISREG(status.st_mode):
        raise ModelNotFoundError(f"there is no model file {str(path)!r}")
    return known_memory(path, status, n_ctx, kv_type=kv_type, slots=slots, outputs=outputs)


def known_memory(
    path: Path,
    status: os.stat_result,
    n_ctx: int,
    *,
    kv_type: KVType = "f16",
    slots: int = 1,
    outputs: int = OUTPUTS,
) -> MemoryNeed:
    """`predict_memory` of a file whose status is known: every decision asks for every tier."""
    # By its name: a path takes longer to look up.
    key = (str(path), status.st_size, status.st_mtime_ns, kv_type, slots, outputs)
    found = _known.get((key, n_ctx))
    if found is None:
        reckoned = _reckon(path, n_ctx, kv_type, slots, outputs)
        if len(_known) > _REMEMBERED:
            _known.clear()
        _known.update(((key, size), need) for size, need in reckoned.items())
        found = reckoned[n_ctx]
    return found


_known: dict[tuple[tuple[object, ...], int], MemoryNeed] = {}
_REMEMBERED = 4096


def _reckon(
    path: Path, n_ctx: int, kv_type: KVType, slots: int, outputs: int
) -> dict[int, MemoryNeed]:
    """By tokens of context: these, and what it grows to by doubling."""
    tensors = read_tensors(path)
    if mostly_repacked(tensors):
        weights = sum(tensor.bytes for tensor in tensors if tensor.used_in_place)
    else:
        weights = mapped_bytes(tensors)
    repacked = sum(tensor.repacked_bytes for tensor in tensors)
    needs = {}
    with Model(path, no_alloc=True) as model:
        merges = _MERGES.findall("".join(model.load_log))
        vocabulary = model.vocab_size * TOKEN_BYTES + sum(map(int, merges)) * MERGE_BYTES
        apart = keeps_apart(model)
        sequences = slots if apart else SEQUENCES
        for size in _doublings(n_ctx, model.context_tokens):
            try:
                context = Context(
                    model,
                    size,
                    threads=1,
                    sequences=sequences,
                    apart=apart,
                    outputs=outputs,
                    kv_type=kv_type,
                )
            except OutOfMemoryError:
                if size == n_ctx:
                    raise
                break  # nobody asked for so large a one yet
            with context:
                log = context.open_log
                # llama.cpp begins with an output for each sequence, and grows when more are wanted.
                rows = context.max_outputs / sequences
                buffers = _sum(_COMPUTE, log) + round(_sum(_OUTPUT, log) * rows)
                needs[size] = MemoryNeed(
                    weights_bytes=weights,
                    kv_bytes=_sum(_KV, log),
                    compute_bytes=buffers + context.scratch_bytes,
                    vocabulary_bytes=vocabulary,
                    repacked_bytes=repacked,
                )
    return needs


def _doublings(n_ctx: int, most: int) -> Iterator[int]:
    yield n_ctx
    while n_ctx < most:
        n_ctx = min(2 * n_ctx, most)
        yield n_ctx


def _sum(size: re.Pattern[str], log: Iterable[str]) -> int:
    found = (size.search(line) for line in log)
    return int(sum(float(match[1]) * _MIB for match in found if match))
