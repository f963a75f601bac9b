"""Models made on the spot, in the real formats: GGUF files and transformers checkpoints.

* `write_tiny_gguf`: random weights. For whatever needs a model that loads and runs.
* `write_scripted_gguf`: a real llama whose greedy answer is known, so that a test knows what
  comes out *behind* the real tokenizer, chat template, grammar, sampler and parser.
* `write_tiny_checkpoint`: a transformers folder of one of the shapes that can be exported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that knows nothing of tools, as SmolLM2's."""

CHATML_TOOLS = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if not (tools and loop.first and message['role'] == 'system') %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>\n"
    "{\"name\": \"{{ call['function']['name'] }}\", "
    "\"arguments\": {{ call['function']['arguments'] | tojson }}}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template with tools, in the manner of Qwen2.5."""

START, END = "<|im_start|>", "<|im_end|>"
_SPECIAL = ("<|endoftext|>", START, END)


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: byte-level vocabularies store text in these letters."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def spelled(text: str) -> str:
    """``text`` in GPT-2's byte letters."""
    letters = byte_letters()
    return "".join(letters[byte] for byte in text.encode())


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary: special tokens, 256 bytes, merges, then whole keywords."""

    merges: tuple[tuple[str, str], ...]
    keywords: tuple[str, ...] = ()

    @property
    def tokens(self) -> list[str]:
        """Token texts by id, as GGUF stores them."""
        merged = [left + right for left, right in self.merges]
        return [*_SPECIAL, *byte_letters().values(), *merged, *self.keywords]

    @property
    def types(self) -> list[int]:
        """Token types by id. User-defined tokens are recognised in any text, before BPE."""
        normal = 256 + len(self.merges)
        return (
            [int(gguf.TokenType.CONTROL)] * len(_SPECIAL)
            + [int(gguf.TokenType.NORMAL)] * normal
            + [int(gguf.TokenType.USER_DEFINED)] * len(self.keywords)
        )

    def ids(self, text: str) -> list[int]:
        """Token ids of ``text``, byte by byte (no merges, no specials)."""
        order = {byte: len(_SPECIAL) + i for i, byte in enumerate(byte_letters())}
        return [order[byte] for byte in text.encode()]


def _merge_words(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Merges that build each word from left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        letters = spelled(word)
        for cut in range(1, len(letters)):
            merges[letters[:cut], letters[cut]] = None
    return tuple(merges)


def _write_gguf(
    path: Path,
    vocabulary: Vocabulary,
    tensors: Mapping[str, Array],
    numbers: Mapping[str, int | float],
    *,
    architecture: str,
    name: str,
    chat_template: str | None,
    file_type: Literal["F16", "F32"],
) -> Path:
    """Writes one GGUF. ``numbers`` are the keys under the architecture's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_license("apache-2.0")
    kind = gguf.LlamaFileType.MOSTLY_F16 if file_type == "F16" else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(kind)
    for key, value in numbers.items():
        if isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        else:
            writer.add_float32(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(_SPECIAL.index(START))
    writer.add_eos_token_id(_SPECIAL.index(END))
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for key, tensor in tensors.items():
        half = file_type == "F16" and tensor.ndim > 1
        writer.add_tensor(key, tensor.astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 4,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    context: int = 512,
    architecture: str = "llama",
    file_type: Literal["F16", "F32"] = "F16",
    name: str = "tiny",
    chat_template: str | None = CHATML_TOOLS,
) -> Path:
    """A llama with random weights: about 0.2 M parameters, vocabulary of some 300 tokens.

    Args:
        path: Where to write; folders are made.
        seed: Of the weights. The same arguments give the same file, byte by byte.
        width: Hidden size; K-quants need ``width`` and ``ffn`` to be multiples of 256.
        architecture: Written as given, so that an unknown one can be tried too.
    """
    words = (" the", " a", " is", " weather", " Paris", "hello", "ing", "er", "  ", '{"name"')
    vocabulary = Vocabulary(_merge_words(words))
    rng = np.random.default_rng(seed)
    head = width // heads

    def matrix(rows: int, columns: int) -> Array:
        return (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    size = len(vocabulary.tokens)
    tensors: dict[str, Array] = {
        # Embeddings of unit size, so that the tokens drown in neither noise nor each other.
        "token_embd.weight": matrix(size, width) * np.float32(width**0.5),
        "output_norm.weight": np.ones(width, np.float32),
        # Large enough for peaked predictions: quantized copies must differ measurably.
        "output.weight": matrix(size, width) * np.float32(4.0),
    }
    for layer in range(layers):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": np.ones(width, np.float32),
            f"blk.{layer}.attn_q.weight": matrix(heads * head, width),
            f"blk.{layer}.attn_k.weight": matrix(kv_heads * head, width),
            f"blk.{layer}.attn_v.weight": matrix(kv_heads * head, width),
            f"blk.{layer}.attn_output.weight": matrix(width, heads * head),
            f"blk.{layer}.ffn_norm.weight": np.ones(width, np.float32),
            f"blk.{layer}.ffn_gate.weight": matrix(ffn, width),
            f"blk.{layer}.ffn_up.weight": matrix(ffn, width),
            f"blk.{layer}.ffn_down.weight": matrix(width, ffn),
        }
    numbers: dict[str, int | float] = {
        "vocab_size": size,
        "context_length": context,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "rope.dimension_count": head,
        "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    return _write_gguf(
        path,
        vocabulary,
        tensors,
        numbers,
        architecture=architecture,
        name=name,
        chat_template=chat_template,
        file_type=file_type,
    )


# --- the scripted model -----------------------------------------------------------------
#
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


def write_scripted_gguf(
    path: Path,
    replies: str | Mapping[str, str],
    *,
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
    vocabulary = Vocabulary(_merge_words(["\x00\x00"]), keywords)
    size = len(vocabulary.tokens)
    codes = _codes(size)
    ids = {key: index for index, key in enumerate(vocabulary.tokens)}
    steps = _steps(script, vocabulary, ids)

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
    return _write_gguf(
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
    script: Mapping[str, str], vocabulary: Vocabulary, ids: Mapping[str, int]
) -> list[_Step]:
    steps: dict[tuple[tuple[int, ...], int], _Step] = {}
    for keyword, reply in script.items():
        inside = [key for key in script if key and key in reply]
        if inside:
            raise ValueError(f"the reply {reply!r} contains the keyword {inside[0]!r}")
        mark = ids[keyword or START]
        text = [ids[START], *vocabulary.ids("assistant\n"), *vocabulary.ids(reply), ids[END]]
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


# --- transformers checkpoints -----------------------------------------------------------

Shape = Literal["llama", "llama2", "smollm", "qwen2", "qwen3", "mistral"]

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_CORPUS = (
    "The weather in Paris is 18 degrees, isn't it? They'll say it's 2024-11-23, 12345 times.",
    "def add(a, b):\n    return a + b  # sum\n\n\nfor i in range(100):\n\tprint(i, end='')\n",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 10}}',
    "Ein Äpfel, deux œufs, três maçãs; 東京は晴れです。 Привет, мир! 🎉🎉 HTTPServer camelCase",
    "the the then there their  these   those    and and for for of of to to in in is is",
)


def write_tiny_checkpoint(
    folder: Path,
    *,
    family: Shape,
    seed: int = 0,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    context: int = 256,
    head_dim: int | None = None,
    tie_embeddings: bool | None = None,
    rope: Mapping[str, Any] | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    shard_size: str = "1GB",
    licence: str | None = "apache-2.0",
) -> Path:
    """A transformers checkpoint with random weights and a tokenizer of its family's kind.

    Args:
        folder: Where to write config.json, *.safetensors, tokenizer.json and so on.
        family: "llama" has Llama 3's tokenizer and RoPE scaling, "llama2" SentencePiece's
            (BPE with byte fallback), "smollm" tied embeddings and split digits, "mistral"
            the Tekken tokenizer.
        head_dim: Where it is not ``width / heads`` (all shapes but Qwen2 take it).
        tie_embeddings: ``None`` for the family's habit.
        rope: In place of the family's ``rope_parameters``.
        shard_size: Largest safetensors file, as transformers writes sizes ("50KB").
    """
    import torch
    import transformers
    from transformers import PreTrainedTokenizerFast

    tokenizer, special = _train_tokenizer(family)
    shape, model_type = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }.get(family, (transformers.LlamaConfig, transformers.LlamaForCausalLM))
    scaling: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if family == "llama":
        scaling = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    extra: dict[str, Any] = {} if head_dim is None else {"head_dim": head_dim}
    if family == "qwen3":
        extra = {"head_dim": head_dim or width // heads}
    config = shape(
        # Models round their vocabulary up; the spare rows have no token.
        vocab_size=-(-tokenizer.get_vocab_size() // 32) * 32,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-6,
        tie_word_embeddings=family == "smollm" if tie_embeddings is None else tie_embeddings,
        rope_parameters=dict(rope or scaling),
        bos_token_id=tokenizer.token_to_id(special["bos_token"])
        if "bos_token" in special
        else None,
        eos_token_id=tokenizer.token_to_id(special["eos_token"]),
        pad_token_id=None,
        **extra,
    )
    model = model_type(config)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=noise)
            if "norm" in name:
                weight.copy_(1 + 0.2 * random)
            elif weight.ndim == 1 or "embed_tokens" in name or "lm_head" in name:
                weight.copy_(0.3 * random)
            else:
                weight.copy_(random * weight.shape[1] ** -0.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = CHATML_TOOLS
    wrapped.save_pretrained(folder)
    if licence is not None:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# Tiny {family}\n")
    return folder


def _train_tokenizer(family: Shape) -> tuple[Any, dict[str, str]]:
    """A `tokenizers.Tokenizer` of the family's structure, and its special tokens by role."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
    from tokenizers import pre_tokenizers as pre
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    if family == "llama2":
        return _sentencepiece_tokenizer(), {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
    split = {"llama": LLAMA3_SPLIT, "mistral": TEKKEN_SPLIT}.get(family, QWEN2_SPLIT)
    special = {
        "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"},
        "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "smollm": {"bos_token": START, "eos_token": END, "unk_token": "<|endoftext|>"},
    }.get(family, {"eos_token": END, "pad_token": "<|endoftext|>"})
    whole_words = family in ("llama", "mistral")
    tokenizer = Tokenizer(BPE(ignore_merges=whole_words))
    if family.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    bytes_only = pre.ByteLevel(add_prefix_space=False, use_regex=family == "smollm")
    first = pre.Digits(True) if family == "smollm" else pre.Split(Regex(split), "isolated", False)
    tokenizer.pre_tokenizer = pre.Sequence([first, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    names = dict.fromkeys((*special.values(), "<|endoftext|>", START, END))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    # Not special: shown in text, and recognised in it ("user defined" in GGUF).
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    if family in ("llama", "mistral"):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    return tokenizer, special


def _sentencepiece_tokenizer() -> Any:
    """Llama 2's structure: ``▁`` for spaces, unknown characters as bytes, no regex."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers import pre_tokenizers as pre
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre.Metaspace()
    trained.train_from_iterator(_CORPUS * 4, BpeTrainer(vocab_size=260, show_progress=False))
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    # Single letters come last in SentencePiece's files, the merged pieces in merge order first.
    ordered = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ordered += [piece for piece, _ in pieces if len(piece) > 1]
    ordered += [piece for piece, _ in pieces if len(piece) == 1]
    ids = {piece: index for index, piece in enumerate(ordered)}
    merges = _merges_of(trained)
    tokenizer = Tokenizer(
        BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ordered[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _merges_of(tokenizer: Any) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges]
