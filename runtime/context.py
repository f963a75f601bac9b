"""The KV cache and compute buffers of one model, for one or many sequences."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from tierwise.runtime.cores import release_workers, turns
from tierwise.runtime.errors import (
    CacheFullError,
    EngineError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from tierwise.runtime.llama import Model, captured_log, reason_in
from tierwise.runtime.resources import gpu_names

PREFILL_BATCH = 512
"""Tokens per llama_decode during prefill; also the unit in which a prefill can be cancelled."""

KVType = Literal["f16", "q8_0"]
_KV_TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}

PLAIN_ATTENTION_BATCH = 128
"""Tokens that plain attention looks at once. Its scores take six bytes for each of them, cell and
head, as llama.cpp keeps them in f32 and copies them to f16."""

_HEAD_SIZE = re.compile(r"does not divide n_embd_head_[kv]=(\d+)")

_STATE_HEADER = 3 * 4
"""Bytes of a saved state before its cells: magic, sequence, number of streams."""

_MOST_APART = 64
"""Sequences with cells of their own; a saved state has four bytes to spare for each."""

_NO_SLOT = 1
"""llama_decode's code for a KV cache without enough free cells; it is then left as it was."""


class Chunk(NamedTuple):
    """Tokens of one sequence that go through the model in one batch with others.

    Args:
        sequence: Number of the sequence, from 0.
        position: Of the first token.
        tokens: At least one.
        outputs: For how many of the last tokens logits are wanted.
    """

    sequence: int
    position: int
    tokens: Sequence[int]
    outputs: int = 0


def keeps_apart(model: Model) -> bool:
    """Whether the sequences of a model are best given cells of their own.

    llama.cpp's attention on a CPU looks at the mask of every cell in use, for every token and
    head: the more other sequences hold, the slower is each. (SmolLM2-135M, two cores, eight
    sequences of 1,300 tokens: a step of all eight takes 1.5 times as long over shared cells,
    512 prompt tokens 1.6 times.) Not for recurrent and sliding-window models, whose states
    cannot go to a context with another number of sequences, and not where a GPU takes part.
    """
    return model.divisible and not lib.llama_model_n_swa(model.handle) and not gpu_names()


class Context:
    """The KV cache and compute buffers of one model.

    Sequences either share the cells of one cache: a prefix that several have in common is kept
    once, and none has a share of its own that others could not use. Or they are kept apart, which
    takes more memory and is quicker on a CPU (`keeps_apart`).

    Args:
        model: Stays open for as long as the context.
        n_ctx: Tokens that one sequence may hold; where cells are shared, all of them together.
        threads: For prefill and decode.
        sequences: How many there may be at once, at most 256 (apart: 64).
        apart: Gives each sequence ``n_ctx`` cells of its own.
        outputs: Most tokens of one batch that logits are wanted for. Costs about
            ``vocab_size * 4`` bytes of buffers for each.
        all_logits: As many outputs as a batch has tokens (for measuring divergence).
        kv_type: How keys and values are stored.
        on_tensor: llama.cpp's ``cb_eval``, for collecting activations.
        batch: Most tokens of one batch.

    Raises:
        OutOfMemoryError: llama.cpp could not allocate the buffers.
        UnsupportedModelError: The model's heads are of a size that ``kv_type`` cannot hold.
    """

    def __init__(
        self,
        model: Model,
        n_ctx: int,
        *,
        threads: int,
        sequences: int = 1,
        apart: bool = False,
        outputs: int = 1,
        all_logits: bool = False,
        kv_type: KVType = "f16",
        on_tensor: Any = None,
        batch: int = PREFILL_BATCH,
    ) -> None:
        self.model = model
        self.sequences = sequences
        self.apart = apart
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx * sequences if apart else n_ctx
        params.n_batch = params.n_ubatch = min(batch, n_ctx)
        params.n_seq_max = sequences
        params.kv_unified = not apart
        self.scratch_bytes = 0
        """What llama.cpp allocates with the first batches, besides what ``open_log`` tells."""
        if apart and kv_type == "f16" and _PLAIN_IS_QUICKER:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.n_ubatch = min(PLAIN_ATTENTION_BATCH, params.n_batch)
            heads = int(lib.llama_model_n_head(model.handle))
            self.scratch_bytes = 2 * int(params.n_ubatch) * heads * n_ctx
        params.n_outputs_max = params.n_batch if all_logits else max(outputs, sequences)
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = _KV_TYPES[kv_type]
        params.no_perf = True
        if on_tensor is not None:
            params.cb_eval = on_tensor
        self._keep = on_tensor
        self.batch_size = int(params.n_batch)
        self.max_outputs = int(params.n_outputs_max)
        self.kv_type: KVType = kv_type
        self.divisible = model.divisible
        self._all_logits = all_logits
        with captured_log() as log:
            self._handle = lib.llama_init_from_model(model.handle, params)
        if not self._handle:
            if head := _HEAD_SIZE.search("".join(log)):
                raise UnsupportedModelError(
                    f"the keys and values of {model.path.name!r} cannot be kept as {kv_type}: "
                    f"it has {head[1]} values a head, and {kv_type} has blocks of 32. "
                    'Use kv_type="f16".'
                )
            raise OutOfMemoryError(
                f"llama.cpp could not open a context of {n_ctx} tokens for "
                f"{model.path.name!r}: {reason_in(log)}. Ask for a smaller context."
            )
        self._rows: dict[int, NDArray[np.float32]] = {}
        self.open_log = tuple(log)
        self.n_ctx = int(lib.llama_n_ctx_seq(self._handle))
        self._threads = 0 if gpu_names() else threads  # a GPU takes turns by itself
        self._batch = lib.llama_batch_init(self.batch_size, 0, 1)
        view = np.ctypeslib.as_array
        shape = (self.batch_size,)
        self._tokens = view(self._batch.token, shape)
        self._positions = view(self._batch.pos, shape)
        self._wanted = view(self._batch.logits, shape)
        view(self._batch.n_seq_id, shape)[:] = 1
        # One sequence for each token: the pointers lie in one array, eight bytes apart.
        self._sequences = [self._batch.seq_id[index] for index in range(self.batch_size)]
        for pointer in self._sequences:
            pointer[0] = 0

    @property
    def handle(self) -> Any:
        """The ``llama_context *``; EngineError after `close`."""
        if not self._handle:
            raise EngineError(f"the context of {self.model.path.name!r} was closed")
        return self._handle

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        """Runs one batch of at most `batch_size` tokens through the model.

        Returns:
            For each chunk the row of its first wanted logits, for `logits`; those of its later
            tokens follow.

        Raises:
            CacheFullError: Too few cells are free; nothing has changed.
            EngineError: llama.cpp failed. What the chunks' sequences hold is then not known.
        """
        handle = self.handle  # before anything is written into buffers that `close` frees
        rows: list[int] = []
        end = 0
        for sequence, position, tokens, outputs in chunks:
            start, end = end, end + len(tokens)
            if end - start == 1:  # a reply's next token: numpy is slow with slices of one
                self._tokens[start] = tokens[0]
                self._positions[start] = position
                self._wanted[start] = outputs
                self._sequences[start][0] = sequence
            else:
                self._tokens[start:end] = tokens
                self._positions[start:end] = range(position, position + end - start)
                self._wanted[start:end] = 0
                self._wanted[end - outputs : end] = 1
                for index in range(start, end):
                    self._sequences[index][0] = sequence
            rows.append(end - outputs)
        self._batch.n_tokens = end
        cores = turns()
        taken = cores.take(self._threads)
        try:
            code = lib.llama_decode(handle, self._batch)
        finally:
            cores.give(taken)
        if code == _NO_SLOT:
            raise CacheFullError(
                f"the context of {self.n_ctx} tokens has no room for {end} more "
                f"(model {self.model.path.name!r})"
            )
        if code != 0:
            places = ", ".join(
                f"{len(c.tokens)} tokens at position {c.position} of sequence {c.sequence}"
                for c in chunks
            )
            raise EngineError(
                f"llama.cpp failed to decode {places} in a context of {self.n_ctx} "
                f"(code {code}, model {self.model.path.name!r})"
            )
        return rows

    def decode(
        self,
        tokens: Sequence[int],
        position: int,
        *,
        between: Callable[[], None] | None = None,
    ) -> None:
        """Runs tokens of sequence 0 through the model, at most `batch_size` at a time.

        Afterwards `logits` has the last token's (with ``all_logits``: those of the last batch).

        Args:
            tokens: At least one; they must fit in the context.
            position: Of the first of them.
            between: Called before each batch; may raise to stop.
        """
        for start in range(0, len(tokens), self.batch_size):
            if between is not None:
                between()
            part = tokens[start : start + self.batch_size]
            last = start + len(part) == len(tokens)
            outputs = len(part) if self._all_logits else int(last)
            self.run([Chunk(0, position + start, part, outputs)])

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """Logits over the vocabulary, a view that the next `run` overwrites.

        Args:
            row: What `run` returned; -1 for the batch's last.
        """
        pointer = lib.llama_get_logits_ith(self.handle, row)
        address = ctypes.addressof(pointer.contents)
        if address not in self._rows:  # numpy takes longer to look at a pointer than to use it
            self._rows[address] = np.ctypeslib.as_array(pointer, (self.model.vocab_size,))
        return self._rows[address]

    def batch_logits(self, size: int) -> NDArray[np.float32]:
        """Logits of all ``size`` tokens of the last batch, shape (size, vocab); a view."""
        pointer = lib.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(pointer, (size, self.model.vocab_size))

    def truncate(self, length: int, sequence: int = 0) -> bool:
        """Forgets a sequence's tokens from position ``length`` on.

        Returns:
            False where the memory cannot be cut there (recurrent models); the sequence is then
            empty.
        """
        memory = lib.llama_get_memory(self.handle)
        if lib.llama_memory_seq_rm(memory, sequence, length, -1):
            return True
        lib.llama_memory_seq_rm(memory, sequence, -1, -1)
        return False

    def share(self, source: int, target: int, length: int) -> None:
        """Gives the first ``length`` tokens of one sequence to another, empty one.

        Over shared cells both then hold the same ones: it takes no memory and next to no time.
        Kept apart, they are copied, about 8 µs a token. (Not by ``llama_memory_seq_cp``, which
        would copy only when the next batch runs, whatever has become of the source by then.)
        """
        if self.apart:
            self.restore(target, self.save(source))
            self.truncate(length, target)
            return
        lib.llama_memory_seq_cp(lib.llama_get_memory(self.handle), source, target, 0, length)

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """The keys and values of a sequence, to be given back to `restore`, be it that of
        another context with any number of sequences kept apart."""
        size = int(lib.llama_state_seq_get_size(self.handle, sequence))
        spare = 4 * _MOST_APART if self.apart else 0
        state = np.empty(size + spare, np.uint8)
        written = lib.llama_state_seq_get_data(self.handle, _pointer(state), size, sequence)
        if not self.apart:
            return state[:written]
        # After the header the number of cells of each sequence's stream, 0 but for this one, whose
        # cells follow (llama_kv_cache::state_write). Cut down to that one stream.
        start = 4 * sequence
        end = written - 4 * (self.sequences - 1 - sequence)
        state[start : start + _STATE_HEADER] = state[:_STATE_HEADER].copy()
        state[end : end + spare] = 0
        return state[start : end + spare]

    def restore(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        """Puts what `save` gave into an empty sequence; False where it does not fit."""
        size = state.size
        if self.apart:  # as many streams as this context has, all but the first of them empty
            size -= 4 * (_MOST_APART - self.sequences + 1)
            state[8:_STATE_HEADER].view(np.uint32)[0] = self.sequences
        done = lib.llama_state_seq_set_data(self.handle, _pointer(state), size, sequence)
        if done == size:
            return True
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.handle), sequence, -1, -1)
        return False

    def close(self) -> None:
        """Frees the KV cache and the compute buffers, and ends what helped this thread compute."""
        release_workers()
        if self._handle:
            lib.llama_batch_free(self._batch)
            lib.llama_free(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_PLAIN_IS_QUICKER = platform.machine() in ("x86_64", "AMD64")
"""llama.cpp's flash attention on x86 is slow for fewer than 64 tokens at once, as it sums values
in f16. SmolLM2-135M, two cores with AVX-512, behind 1,400 tokens: 33 more take 204 ms with it and
123 without, 4 take 37 and 28, one the same; the 1,400 themselves take 3.3 and 3.6 s."""


def _pointer(state: NDArray[np.uint8]) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
