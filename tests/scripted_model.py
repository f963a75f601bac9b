"""`write_scripted_gguf`: a real llama whose greedy answer is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from gguf_writer import (
    CHATML_TOOLS,
    END,
    START,
    Array,
    Vocabulary,
    merge_words,
    write_gguf,
)
from numpy.typing import NDArray

# One layer, every weight set by hand. Each token has a random code of +1/-1. The residual
# stream is cut into slots of _CODE numbers:
#
#   slot 0          the code of the current token                (embedding)
#   slots 1.._BACK  the codes of the tokens 1.._BACK places back (one attention head each)
#   slot _BACK+1    the code of the latest keyword in the text, or of <|im_start|> if there
#                   is none                                      (one attention head)
#   slot _BACK+2    the code of the next token                   (feed-forward, read by output)
#
# and a last block that is constant. A head looks exactly j places back because its query is
# the constant key turned back by j positions of RoPE, over frequencies of our choice. Each
# feed-forward neuron is one step of one reply: it fires when all slots match what stands
# before that step, and then writes the code of the token that follows.

_CODE = 36
_BACK = 10
_SLOTS = _BACK + 3
_WIDTH = 512
_HEAD = 64
_HEADS = _BACK + 2  # one is idle: the number must be divisible by the key/value heads
_CONST = slice(480, 512)  # a quantization block (32) of its own
_CONST_VALUE = 4.0
_KEYWORD_FLAG, _START_FLAG, _PLAIN_FLAG = 477, 478, 479
_LOOK_PAIRS = 24  # RoPE pairs that measure distance; the next two find the keyword
_RECENCY_PAIR, _STILL_PAIR = 24, 25
_GAIN = 40.0


FRUIT = {
    "apple": "Red and crisp.",
    "banana": "Long, bent, sweet.",
    "cherry": "Small with a stone.",
    "durian": "It smells.",
    "elderberry": "Good for syrup.",
    "grapefruit": "Bitter but healthy.",
}
"""Replies by keyword, for calls that must not be mixed up."""


def write_scripted_gguf(
    path: Path,
    replies: str | Mapping[str, str],
    *,
    endless: Collection[str] = (),
    context: int = 2048,
    confidence: float = 0.999,
    name: str = "scripted",
    chat_template: str | None = CHATML_TOOLS,
    file_type: Literal["F16", "F32"] = "F16",
) -> Path:
    """A real one-layer llama that answers every chat with a known text.

    Every byte of plain text is one token, and the next token depends on the last eleven and
    on the latest keyword only. So the answer is the same whether the model writes the text
    itself or a grammar forces part of it, and after quantization to Q8_0, Q6_K or Q4_K_M too
    (Q4_0 is too coarse: the model ends at once).

    Args:
        path: Where to write; about 5 MB.
        replies: The reply; or several by keyword, where the keyword that stands last in the
            prompt decides (say the user's city first, then a word of the tool's result).
            Key ``""`` is the reply when the prompt has no keyword. A reply is followed by
            ``<|im_end|>``. Off the script the model wants to end: it likes ``<|im_end|>``
            most, then ``"``, ``}``, ``]``.
        endless: Keywords of replies that never end but begin anew, again and again.
        confidence: Gap between the chances of the best and second-best token, at the least
            certain step of the replies.
        context: Longest text, in tokens, that the attention was made for.

    Raises:
        ValueError: A reply holds the same eleven bytes twice with different continuations,
            or contains a keyword.
    """
    script = {"": replies} if isinstance(replies, str) else dict(replies)
    keywords = tuple(key for key in script if key)
    # llama.cpp insists on merges; no sane text has two NUL bytes in a row.
    vocabulary = Vocabulary(merge_words(["\x00\x00"]), keywords)
    size = len(vocabulary.tokens)
    codes = _codes(size)
    ids = {key: index for index, key in enumerate(vocabulary.tokens)}
    steps = _steps(script, endless, vocabulary, ids)

    embedding = np.zeros((size, _WIDTH), np.float32)
    embedding[:, :_CODE] = codes
    embedding[:, _CONST] = _CONST_VALUE
    embedding[:, _PLAIN_FLAG] = 1.0
    flagged = {ids[START]: _START_FLAG} | {ids[key]: _KEYWORD_FLAG for key in keywords}
    for token, flag in flagged.items():
        embedding[token, [_PLAIN_FLAG, flag]] = 0.0, 1.0

    query, key, value, output, factors = _attention(context)
    gate, up, down = _feed_forward(steps, codes)
    read, norm_out = _read_out(steps, codes, ids, confidence)
    # RMSNorm divides by what is known beforehand; its weight multiplies it back.
    in_norm = _rms(_CODE + 1)
    mid_norm = _rms(_CODE * (_BACK + 2) + 1)
    tensors: dict[str, Array] = {
        "token_embd.weight": embedding,
        "rope_freqs.weight": factors,
        "blk.0.attn_norm.weight": np.full(_WIDTH, in_norm, np.float32),
        "blk.0.attn_q.weight": query,
        "blk.0.attn_k.weight": key,
        "blk.0.attn_v.weight": value,
        "blk.0.attn_output.weight": output,
        "blk.0.ffn_norm.weight": np.full(_WIDTH, mid_norm, np.float32),
        "blk.0.ffn_gate.weight": gate,
        "blk.0.ffn_up.weight": up,
        "blk.0.ffn_down.weight": down,
        "output_norm.weight": np.full(_WIDTH, norm_out, np.float32),
        "output.weight": read,
    }
    numbers: dict[str, int | float] = {
        "vocab_size": size,
        "context_length": context,
        "embedding_length": _WIDTH,
        "block_count": 1,
        "feed_forward_length": gate.shape[0],
        "attention.head_count": _HEADS,
        "attention.head_count_kv": 1,
        "attention.key_length": _HEAD,
        "attention.value_length": _HEAD,
        "rope.dimension_count": _HEAD,
        "rope.freq_base": 1.0,  # every pair turns by 1/factor a position: see _attention
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    return write_gguf(
        path,
        vocabulary,
        tensors,
        numbers,
        architecture="llama",
        name=name,
        chat_template=chat_template,
        file_type=file_type,
    )


def _slot(index: int) -> slice:
    return slice(index * _CODE, (index + 1) * _CODE)


def _rms(ones: float) -> float:
    """Root mean square of a residual with ``ones`` entries of size 1 besides the constants."""
    return float(((ones + 32 * _CONST_VALUE**2) / _WIDTH) ** 0.5)


def _codes(size: int) -> Array:
    """A row of ±1 per token, no two rows agreeing in more than three quarters of places."""
    rng = np.random.default_rng(7)
    rows: list[NDArray[np.int64]] = []
    while len(rows) < size:
        row = rng.choice((-1, 1), _CODE)
        if all(abs(int(row @ other)) <= _CODE // 2 for other in rows):
            rows.append(row)
    return np.array(rows, np.float32)


@dataclass(frozen=True)
class _Step:
    """After ``before`` (newest first), with ``keyword`` the latest, comes ``follows``."""

    before: tuple[int, ...]
    keyword: int
    follows: int


def _steps(
    script: Mapping[str, str],
    endless: Collection[str],
    vocabulary: Vocabulary,
    ids: Mapping[str, int],
) -> list[_Step]:
    steps: dict[tuple[tuple[int, ...], int], _Step] = {}
    for keyword, reply in script.items():
        inside = [key for key in script if key and key in reply]
        if inside:
            raise ValueError(f"the reply {reply!r} contains the keyword {inside[0]!r}")
        mark = ids[keyword or START]
        text = [ids[START], *vocabulary.ids("assistant\n"), *vocabulary.ids(reply)]
        text += vocabulary.ids(reply * 2) if keyword in endless else [ids[END]]
        for position in range(_BACK + 1, len(text)):
            before = tuple(reversed(text[position - _BACK - 1 : position]))
            step = _Step(before, mark, text[position])
            if steps.setdefault((before, mark), step) != step:
                repeated = "".join(vocabulary.tokens[token] for token in reversed(before))
                raise ValueError(f"{reply!r} goes on in two ways after {repeated!r}")
    return list(steps.values())


def _attention(context: int) -> tuple[Array, Array, Array, Array, Array]:
    """Query, key, value and output matrices, and the RoPE factors (llama.cpp divides by them)."""
    rng = np.random.default_rng(11)
    frequency = np.full(_HEAD // 2, 1e-9)
    frequency[:_LOOK_PAIRS] = rng.uniform(0.3, 3.1, _LOOK_PAIRS)
    frequency[_RECENCY_PAIR] = 1.6 / context
    distance = np.arange(-_BACK, context)
    score = np.cos(np.outer(distance, frequency[:_LOOK_PAIRS])).sum(axis=1)
    rival = np.delete(score, _BACK).max()
    sharp = 40.0 * _HEAD**0.5 / (_LOOK_PAIRS - rival)  # e^-40 is left for all other places
    unit = 1 / (32 * _CONST_VALUE)  # sums the constant block to 1

    key = np.zeros((_HEAD, _WIDTH), np.float32)
    key[0 : 2 * _LOOK_PAIRS : 2, _CONST] = unit
    key[2 * _RECENCY_PAIR, _KEYWORD_FLAG] = 1.0
    key[2 * _STILL_PAIR, _KEYWORD_FLAG] = 1.0
    key[2 * _STILL_PAIR, _START_FLAG] = 0.25
    value = np.zeros((_HEAD, _WIDTH), np.float32)
    value[:_CODE, :_CODE] = np.eye(_CODE)

    query = np.zeros((_HEADS, _HEAD, _WIDTH), np.float32)
    output = np.zeros((_WIDTH, _HEADS, _HEAD), np.float32)
    for back in range(1, _BACK + 1):
        angle = -back * frequency[:_LOOK_PAIRS]
        query[back - 1, 0 : 2 * _LOOK_PAIRS : 2, _CONST] = (sharp * unit * np.cos(angle))[:, None]
        query[back - 1, 1 : 2 * _LOOK_PAIRS : 2, _CONST] = (sharp * unit * np.sin(angle))[:, None]
        output[_slot(back), back - 1, :_CODE] = np.eye(_CODE)
    # Keyword head: strength (1.25 + cos(distance·frequency + 0.7)) falls with distance, but
    # stays above that of <|im_start|>, which stays above the 0 of other tokens.
    strength = 700.0 * _HEAD**0.5
    query[_BACK, 2 * _RECENCY_PAIR, _CONST] = strength * unit * np.cos(0.7)
    query[_BACK, 2 * _RECENCY_PAIR + 1, _CONST] = strength * unit * np.sin(0.7)
    query[_BACK, 2 * _STILL_PAIR, _CONST] = strength * unit * 1.25
    output[_slot(_BACK + 1), _BACK, :_CODE] = np.eye(_CODE)
    factors = (1 / frequency).astype(np.float32)
    return (
        query.reshape(_HEADS * _HEAD, _WIDTH),
        key,
        value,
        output.reshape(_WIDTH, _HEADS * _HEAD),
        factors,
    )


def _feed_forward(steps: Sequence[_Step], codes: Array) -> tuple[Array, Array, Array]:
    neurons = -(-len(steps) // 256) * 256
    gate = np.zeros((neurons, _WIDTH), np.float32)
    up = np.zeros((neurons, _WIDTH), np.float32)
    down = np.zeros((_WIDTH, neurons), np.float32)
    for neuron, step in enumerate(steps):
        for slot, token in enumerate((*step.before, step.keyword)):
            gate[neuron, _slot(slot)] = codes[token] * (_GAIN / _CODE)
        # All slots matching give _BACK + 2; the nearest miss gives half of one less.
        gate[neuron, _CONST] = -_GAIN * (_BACK + 2 - 0.25) / (32 * _CONST_VALUE)
        up[neuron, _CONST] = 1 / (32 * _CONST_VALUE)
        down[_slot(_BACK + 2), neuron] = codes[step.follows]
    return gate, up, down


def _read_out(
    steps: Sequence[_Step], codes: Array, ids: Mapping[str, int], confidence: float
) -> tuple[Array, float]:
    """The output matrix and the final norm's weight that give the wished confidence."""
    fired = _GAIN * 0.25  # silu(x) = x there
    norm = _rms(_CODE * (_BACK + 2) + 1 + fired**2 * _CODE)
    closing = {ids[END]: 6.0, ids['"']: 4.0, ids["}"]: 3.0, ids["]"]: 2.0}
    bias = np.zeros(len(codes))
    for token, weight in closing.items():
        # Off the script the residual is smaller, so the norm makes this about twice as large.
        bias[token] = weight / 2
    wanted = np.array(sorted({step.follows for step in steps}))
    match = (codes[wanted] @ codes.T) / _CODE

    def gap(scale: float) -> float:
        logits = match * scale + bias
        chance = np.exp(logits - logits.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)
        best = chance[np.arange(len(wanted)), wanted]
        chance[np.arange(len(wanted)), wanted] = 0.0
        return float((best - chance.max(axis=1)).min())

    low, high = 0.0, 60.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if gap(middle) >= confidence else (middle, high)
    read = np.zeros((len(codes), _WIDTH), np.float32)
    read[:, _slot(_BACK + 2)] = codes * (high / (_CODE * fired))
    read[:, _CONST] = (bias / (32 * _CONST_VALUE))[:, None]
    return read, norm
