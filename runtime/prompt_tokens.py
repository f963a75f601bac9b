"""Prompts to tokens, remembering every turn: turn n+1 of a conversation tokenizes only its end."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from itertools import chain, pairwise

import llama_cpp as lib
import numpy as np

from tierwise.runtime.llama import Model
from tierwise.runtime.prefix_cache import Ids, keep_ids

REMEMBERED_TOKENS = 1 << 18
"""Of all pieces together; about 40 bytes each."""

REMEMBERED_PROMPTS = 8
"""Beginnings of the latest prompts that are kept in one piece."""

_KINDS = (lib.LLAMA_VOCAB_TYPE_BPE, lib.LLAMA_VOCAB_TYPE_SPM)
_SPECIAL = (
    lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED | lib.LLAMA_TOKEN_ATTR_UNKNOWN
)


class PromptTokenizer:
    """Tokenizes the prompts of one model, exactly as `Model.tokenize` does the whole text.

    llama.cpp takes the special tokens out of a text first, the longest first
    (``tokenizer_st_partition`` in ``llama-vocab.cpp``), and tokenizes what is left between
    them piece by piece. So a text may be cut before each special token that no other reaches
    into (`_cuts`), and the tokens of every piece be remembered, and those of all pieces but the
    last of the latest prompts: of a conversation that goes on, only the end is looked at.
    Vocabularies without such a token, and kinds other than BPE and SentencePiece, are tokenized
    whole.

    Safe to use from many threads. The model must stay open.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._pattern: re.Pattern[bytes] | None = None
        self._pieces: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._held = 0
        self._begun: tuple[tuple[bytes, tuple[int, ...], Ids], ...] = ()

    def __call__(self, text: str) -> tuple[int, ...]:
        """The tokens of a prompt that was rendered by the chat template.

        Raises:
            EngineError: The model was closed, or llama.cpp could not tokenize the text.
        """
        with self._lock:
            if self._pattern is None:  # reads the whole vocabulary, so not before it is needed
                alternatives = b"|".join(map(re.escape, _cuts(self._model)))
                self._pattern = re.compile(alternatives or b"(?!)")
            raw = text.encode("utf-8", errors="replace")
            begun, known, ids = self._beginning(raw, self._pattern)
            starts = [match.start() for match in self._pattern.finditer(raw, len(begun))]
            bounds = (len(begun), *starts, len(raw))
            pieces = [self._tokens(raw[a:b]) for a, b in pairwise(bounds) if a < b]
            if not starts:
                return known + tuple(chain.from_iterable(pieces))
            new = tuple(chain.from_iterable(pieces[:-1]))
            longer = raw[: starts[-1]], known + new, _with(ids, new)
            rest = [one for one in self._begun if one[0] not in (begun, longer[0])]
            self._begun = (longer, *rest[: REMEMBERED_PROMPTS - 1])
            prompt = longer[1] + pieces[-1]
            keep_ids(prompt, _with(longer[2], pieces[-1]))
            return prompt

    def _beginning(self, raw: bytes, cuts: re.Pattern[bytes]) -> tuple[bytes, tuple[int, ...], Ids]:
        """The longest beginning of a prompt, up to a cut, that one of the latest had, and its
        tokens, as numbers and in an array."""
        found: tuple[bytes, tuple[int, ...], Ids] = (b"", (), _NONE)
        for one in self._begun:
            longer = len(one[0]) > len(found[0]) and raw.startswith(one[0])
            if longer and cuts.match(raw, len(one[0])):
                found = one
        return found

    def _tokens(self, piece: bytes) -> tuple[int, ...]:
        known = self._pieces.get(piece)
        if known is not None:
            self._pieces.move_to_end(piece)
            return known
        tokens = tuple(self._model.tokenize(piece.decode()))
        self._pieces[piece] = tokens
        self._held += len(tokens)
        while self._held > REMEMBERED_TOKENS:
            _, oldest = self._pieces.popitem(last=False)
            self._held -= len(oldest)
        return tokens


_NONE: Ids = np.empty(0, np.int32)


def _with(ids: Ids, more: tuple[int, ...]) -> Ids:
    return np.concatenate((ids, np.array(more, np.int32)))


def _cuts(model: Model) -> list[bytes]:
    """Texts before which any text may be cut without a change to its tokens.

    Those are control tokens that the chat template writes, unless another special token, taken
    out no later, may hold a part of one. Tokens that strip the white space before them
    (LSTRIP) reach into the piece before; those that strip what follows (RSTRIP) do not.
    """
    vocab, attributes = model.vocab, lib.llama_vocab_get_attr
    if lib.llama_vocab_type(vocab) not in _KINDS:
        return []
    found = ((token, attributes(vocab, token)) for token in range(model.vocab_size))
    special = {
        token: (lib.llama_vocab_get_text(vocab, token), attribute)
        for token, attribute in found
        if attribute & _SPECIAL
    }
    template = (model.chat_template or "").encode()
    return [
        text
        for token, (text, attribute) in special.items()
        if attribute & lib.LLAMA_TOKEN_ATTR_CONTROL
        and not attribute & lib.LLAMA_TOKEN_ATTR_LSTRIP
        and text
        and text in template
        and text.strip() == text
        and text.decode(errors="ignore").encode() == text
        and not any(
            _may_overlap(text, other)
            for rival, (other, _) in special.items()
            if rival != token and len(other) >= len(text)
        )
    ]


def _may_overlap(text: bytes, other: bytes) -> bool:
    """Whether some text can hold both so that they share bytes; ``other`` is no shorter."""
    beginnings = tuple(text[:length] for length in range(1, len(text)))
    ends = tuple(text[-length:] for length in range(1, len(text)))
    return text in other or other.endswith(beginnings) or other.startswith(ends)
