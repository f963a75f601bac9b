"""Draws the next token: greedy in NumPy, otherwise llama.cpp's own sampler chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from tierwise.runtime.chat import Sampling, TokenLogprob
from tierwise.runtime.context import Context

_NO_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: a random one


class Sampler:
    """Draws tokens for one reply. Close it to free the chain."""

    def __init__(self, sampling: Sampling) -> None:
        self._chain: Any = None
        if sampling.temperature > 0:
            self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
            for part in (
                lib.llama_sampler_init_top_k(sampling.top_k),
                lib.llama_sampler_init_top_p(sampling.top_p, 1),
                lib.llama_sampler_init_min_p(sampling.min_p, 1),
                lib.llama_sampler_init_temp(sampling.temperature),
                lib.llama_sampler_init_dist(
                    _NO_SEED if sampling.seed is None else sampling.seed % _NO_SEED
                ),
            ):
                lib.llama_sampler_chain_add(self._chain, part)

    def draw(
        self, context: Context, row: int, logits: NDArray[np.float32], matcher: Any | None
    ) -> int:
        """The next token after a row of the batch, one that the grammar allows.

        ``logits`` are the row's; where the grammar forbids what they favour, it is masked there.

        The grammar is asked about the drawn token first; only when it says no is the whole mask
        made. Drawing again from the masked distribution keeps the result distributed as if the
        mask had come first: p(x) + (1 - Z) p(x) / Z = p(x) / Z, Z being the allowed mass. (Top-k,
        top-p and min-p are the exception: they cut each draw's own distribution.)
        """
        token = self._draw(context, row, logits)
        if matcher is None or matcher.validate_tokens([token]) == 1:
            return token
        logits[~allowed(matcher, logits.size)] = -np.inf  # in llama.cpp's own buffer
        return self._draw(context, row, logits)

    def _draw(self, context: Context, row: int, logits: NDArray[np.float32]) -> int:
        if self._chain is None:
            return int(logits.argmax())
        return int(lib.llama_sampler_sample(self._chain, context.handle, row))

    def close(self) -> None:
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None


def allowed(matcher: Any, vocab_size: int) -> NDArray[np.bool_]:
    """Which tokens the grammar allows next, shape (vocab,)."""
    mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    bits = np.unpackbits(mask, count=min(vocab_size, mask.size * 8), bitorder="little")
    if bits.size < vocab_size:
        bits = np.pad(bits, (0, vocab_size - bits.size))
    return bits.astype(bool)


def margin(logits: NDArray[np.float32], best: int | None = None) -> float:
    """Gap between the chances of the likeliest and the second-likeliest token, in 0..1.

    Args:
        logits: Over the vocabulary.
        best: The index of the largest, where it is known.
    """
    if best is None:
        best = int(logits.argmax())
    chances = logits - logits[best]
    np.exp(chances, out=chances)
    total = float(chances.sum())
    chances[best] = 0.0
    return (1.0 - float(chances.max())) / total


def logprob(
    logits: NDArray[np.float32], token: int, alternatives: int, piece: Callable[[int], bytes]
) -> TokenLogprob:
    """The log-probability of a token, and of the likeliest ``alternatives`` in its place."""
    alternatives = min(alternatives, logits.size)
    top = float(logits.max())
    total = top + math.log(float(np.exp(logits - top).sum()))
    likeliest = np.argpartition(-logits, max(0, alternatives - 1))[:alternatives]
    ranked = sorted(map(int, likeliest), key=lambda one: -logits[one])
    return TokenLogprob(
        piece(token),
        float(logits[token]) - total,
        tuple((piece(one), float(logits[one]) - total) for one in ranked),
    )
