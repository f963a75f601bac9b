"""llama.cpp behind small owners: here its log, and a model.

Everything goes through llama-cpp-python's low-level bindings. Each object frees what it owns
in ``close()``; none is safe to use from two threads at once (an `Engine` sees to that).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import llama_cpp as lib

from tierwise.runtime.errors import (
    DamagedModelError,
    EngineError,
    ModelNotFoundError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from tierwise.runtime.tensors import mostly_repacked, read_tensors

_LONGEST_PIECE = 1024
"""Bytes of the longest token known (a run of spaces), four times over."""

_REMEMBERED_PIECES = 4096
"""Of tokens: half a megabyte. All of a vocabulary would take ten."""

_log_lock = threading.RLock()
_log_lines: list[str] | None = None
_log_listener: Callable[[str], None] | None = None
_log_thread = 0


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(_level: int, text: bytes, _user_data: Any) -> None:
    if _log_lines is not None and threading.get_ident() == _log_thread:
        line = text.decode("utf-8", errors="replace")
        _log_lines.append(line)
        if _log_listener is not None:
            _log_listener(line)


lib.llama_backend_init()
lib.llama_log_set(_on_log, ctypes.c_void_p(0))


@contextmanager
def captured_log(listener: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Collects what llama.cpp logs in this thread. The log is global, so one capture runs at a
    time; what other threads have it say meanwhile is left out.

    Args:
        listener: Called with each line as it comes; must not raise.
    """
    global _log_lines, _log_listener, _log_thread
    with _log_lock:
        lib.llama_log_set(_on_log, ctypes.c_void_p(0))  # another library may have taken it
        outer = _log_lines, _log_listener
        _log_lines, _log_listener, _log_thread = [], listener, threading.get_ident()
        try:
            yield _log_lines
        finally:
            _log_lines, _log_listener = outer


def reason_in(lines: Sequence[str]) -> str:
    """The telling line of a failure: the GGUF reader's if it spoke, else the loader's."""
    said = [line for line in lines if " - kv " not in line]  # metadata may say anything
    for sign in ("gguf_init", "error loading model", "failed to"):
        for line in said:
            if sign in line:
                return re.sub(r"^\w+: (error loading model: )?", "", line).strip()
    return "".join(said[-2:]).strip() or "llama.cpp gave no reason"


class Model:
    """The weights and vocabulary of one GGUF file.

    Args:
        path: The file.
        vocab_only: Load metadata and vocabulary, no weights.
        no_alloc: Load the tensors' shapes without their data, to simulate memory use.
        gpu_layers: Layers to place on a GPU that llama.cpp was built for; -1 for all.
        mapped: Leave all weights in the file, where the system may take their memory back at any
            time: slower, and for machines that have no memory to spare.

    Raises:
        ModelNotFoundError, DamagedModelError, UnsupportedModelError, OutOfMemoryError: As
            their names say.
    """

    def __init__(
        self,
        path: Path,
        *,
        vocab_only: bool = False,
        no_alloc: bool = False,
        gpu_layers: int = -1,
        mapped: bool = False,
    ) -> None:
        self.path = path
        self._handle: Any = None
        self._in_use = threading.Lock()
        if not path.is_file():
            raise ModelNotFoundError(f"there is no model file {str(path)!r}")
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = gpu_layers
        if no_alloc:
            params.no_alloc = True
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # mmap and no_alloc exclude each other
        elif mapped:
            params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
            params.n_gpu_layers = 0
            params.use_extra_bufts = False  # their layouts are copies
        elif not vocab_only and mostly_repacked(read_tensors(path)):
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        with captured_log() as log:
            self._handle = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._handle:
            reason = reason_in(log)
            if "unknown model architecture" in reason or "unknown pre-tokenizer" in reason:
                raise UnsupportedModelError(
                    f"{str(path)!r} cannot be loaded: {reason}. This llama.cpp "
                    f"(llama-cpp-python {lib.__version__}) does not know it; a newer one may: "
                    "pip install -U llama-cpp-python."
                )
            if "allocate" in reason or "bad_alloc" in reason:
                raise OutOfMemoryError(
                    f"{str(path)!r} cannot be loaded: {reason}. Free some memory, or take a "
                    "smaller tier."
                )
            raise DamagedModelError(
                f"{str(path)!r} cannot be loaded: {reason}. Download or copy the file again."
            )
        self.load_log = tuple(log)
        self.vocab_size: int = lib.llama_vocab_n_tokens(self.vocab)
        self._shown: dict[int, bytes] = {}
        self._pieces: dict[int, bytes] = {}

    @property
    def handle(self) -> Any:
        """The ``llama_model *``; EngineError after `close`."""
        if not self._handle:
            raise EngineError(f"the model {str(self.path)!r} was closed")
        return self._handle

    @property
    def vocab(self) -> Any:
        """The ``llama_vocab *``, part of the model; EngineError after `close`."""
        return lib.llama_model_get_vocab(self.handle)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The GGUF key-value pairs that are not arrays, as text."""
        out: dict[str, str] = {}
        size = 1 << 20  # chat templates reach tens of kilobytes
        buffer = ctypes.create_string_buffer(size)
        for index in range(lib.llama_model_meta_count(self.handle)):
            lib.llama_model_meta_key_by_index(self.handle, index, buffer, size)
            key = buffer.value.decode("utf-8", errors="replace")
            lib.llama_model_meta_val_str_by_index(self.handle, index, buffer, size)
            out[key] = buffer.value.decode("utf-8", errors="replace")
        return out

    @property
    def architecture(self) -> str:
        return self.metadata.get("general.architecture", "unknown")

    @property
    def chat_template(self) -> str | None:
        return self.metadata.get("tokenizer.chat_template")

    @property
    def context_tokens(self) -> int:
        """The context length that the model was trained for."""
        return int(lib.llama_model_n_ctx_train(self.handle))

    @property
    def divisible(self) -> bool:
        """Whether sequences can be cut and shared at any token (recurrent ones cannot)."""
        weights = self.handle
        return not (lib.llama_model_is_recurrent(weights) or lib.llama_model_is_hybrid(weights))

    @property
    def layers(self) -> int:
        return int(lib.llama_model_n_layer(self.handle))

    @property
    def parameters(self) -> int:
        return int(lib.llama_model_n_params(self.handle))

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of an F16 KV cache for one token, over all layers."""
        heads = lib.llama_model_n_head(self.handle)
        kv_heads = lib.llama_model_n_head_kv(self.handle)
        default = lib.llama_model_n_embd(self.handle) // max(1, heads)
        arch = self.architecture
        key = int(self.metadata.get(f"{arch}.attention.key_length", default))
        value = int(self.metadata.get(f"{arch}.attention.value_length", default))
        return int(self.layers * kv_heads * (key + value) * 2)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``; ``special`` turns control texts into their one token.

        No BOS is added unless the text has it: chat templates write their own. Of all that a
        model can do, this alone may be done in any thread, and while another closes it.
        """
        raw = text.encode("utf-8", errors="replace")
        room = len(raw) + 8
        tokens = (lib.llama_token * room)()
        with self._in_use:
            count = lib.llama_tokenize(self.vocab, raw, len(raw), tokens, room, False, special)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenize a text of {len(raw)} bytes")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens (but see `show_tag`)."""
        known = self._shown.get(token) or self._pieces.get(token)
        if known is not None:
            return known
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        size = lib.llama_token_to_piece(self.vocab, token, buffer, _LONGEST_PIECE, 0, False)
        if len(self._pieces) >= _REMEMBERED_PIECES:
            self._pieces.clear()
        self._pieces[token] = piece = buffer.raw[: max(0, size)]
        return piece

    def show_tag(self, tag: str) -> None:
        """From now on, `piece` gives the tag's text even where the tag is a control token."""
        tokens = self.tokenize(tag)
        if len(tokens) == 1:
            self._shown[tokens[0]] = tag.encode()

    @property
    def bos(self) -> int:
        """The beginning-of-sequence token, negative where there is none."""
        return int(lib.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> int:
        """The end-of-sequence token, negative where there is none."""
        return int(lib.llama_vocab_eos(self.vocab))

    def token_text(self, token: int) -> str:
        """The text of a token, control tokens included; "" for a negative one."""
        text = lib.llama_vocab_get_text(self.vocab, token) if token >= 0 else b""
        return str((text or b"").decode("utf-8", errors="replace"))

    @cached_property
    def tokens_sha256(self) -> str:
        """Of all tokens' texts in order: equal where token ids mean the same."""
        texts = map(self.token_text, range(self.vocab_size))
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()

    def is_end(self, token: int) -> bool:
        """Whether the token ends a reply (any of the model's end-of-generation tokens)."""
        return bool(lib.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        """Frees the weights. Close every context first."""
        with self._in_use:
            handle, self._handle = self._handle, None
        if handle:
            lib.llama_model_free(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
