"""tokenizer.json as GGUF stores it, and the check that llama.cpp cuts text the same way."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierwise.compression.checkpoint import read_json
from tierwise.runtime.errors import DamagedModelError, ModelError, UnsupportedModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Pre-tokenizers by the name that llama.cpp gives them (src/llama-vocab.cpp). The key is what
# `_pre_tokenizer_steps` makes of tokenizer.json, then whether whole words skip the merges.
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
_PRE_TOKENIZERS = {
    (("digits", "bytes with GPT-2's regex"), False): "smollm",
    (("bytes with GPT-2's regex",), False): "gpt-2",
    ((QWEN2_SPLIT, "bytes"), False): "qwen2",
    ((LLAMA3_SPLIT, "bytes"), True): "llama-bpe",
    ((LLAMA3_SPLIT, "bytes"), False): "smaug-bpe",  # the same regex, merges always apply
    ((TEKKEN_SPLIT, "bytes"), True): "tekken",
    (
        (TEKKEN_SPLIT, "bytes"),
        False,
    ): "tekken",  # one form in llama.cpp; the check decides
}

_PROBES = (
    "Hello world! It's 18 degrees, isn't it? They'll SAY so.",
    "  two spaces,\ttab\n\n\nthree lines \r\n and an end  ",
    "def f(x):\n    return x['a'] + 12345.678  # sum!=\n",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "n": -1e10}}',
    "Äpfel, œufs, maçãs; 東京は晴れ。 Привет мир, مرحبا 🎉👩‍🚀 ½ ②",
)


@dataclass(frozen=True)
class TokenizerTables:
    """The tokenizer as GGUF stores it, and the original to compare with."""

    model: str  # "gpt2" (byte-level BPE) or "llama" (SentencePiece's)
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    space_prefix: bool
    add_bos: bool
    add_eos: bool
    original: Any  # tokenizers.Tokenizer


def read_vocabulary(checkpoint: Path, rows: int) -> TokenizerTables:
    """Reads tokenizer.json. ``rows`` is the number of embeddings; rows to spare get no text."""
    from gguf import TokenType
    from tokenizers import Tokenizer

    path = checkpoint / "tokenizer.json"
    if not path.is_file() and (checkpoint / "tokenizer.model").is_file():
        raise UnsupportedModelError(
            f"{str(checkpoint)!r} has SentencePiece's tokenizer.model only. Save the tokenizer "
            "with transformers' AutoTokenizer (use_fast=True), which writes tokenizer.json."
        )
    content = read_json(path)
    model = content.get("model") or {}
    added = {int(token["id"]): token for token in content.get("added_tokens") or []}
    if model.get("type") != "BPE":
        raise UnsupportedModelError(
            f"{str(path)!r} is a {model.get('type')} tokenizer; only BPE (byte-level, or "
            "SentencePiece's with byte fallback) can be converted. Give a GGUF file instead."
        )
    sentencepiece = bool(model.get("byte_fallback"))
    ids = {int(index): text for text, index in model["vocab"].items()}
    ids |= {index: str(token["content"]) for index, token in added.items()}
    if max(ids) >= rows:
        raise DamagedModelError(
            f"{str(path)!r} has token number {max(ids)}, but the model has {rows} embeddings: "
            "they are not of one model. Download both again."
        )
    tokens, types = [], []
    for index in range(rows):
        text = ids.get(index)
        tokens.append(f"[PAD{index}]" if text is None else text)
        if text is None:
            types.append(TokenType.UNUSED)
        elif text == model.get("unk_token") and sentencepiece:
            types.append(TokenType.UNKNOWN)
        elif index in added:
            special = added[index].get("special", False)
            types.append(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        elif sentencepiece and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types.append(TokenType.BYTE)
        else:
            types.append(TokenType.NORMAL)
    original = Tokenizer.from_file(str(path))
    bare = original.encode("a", add_special_tokens=False).ids
    full = original.encode("a").ids
    return TokenizerTables(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else _pre_tokenizer_name(content),
        tokens=tokens,
        types=[int(kind) for kind in types],
        scores=_scores(model, tokens) if sentencepiece else None,
        space_prefix=sentencepiece and _prepends_space(content),
        add_bos=full[0] != bare[0],
        add_eos=full[-1] != bare[-1],
        original=original,
    )


def _pre_tokenizer_name(content: Mapping[str, Any]) -> str:
    """llama.cpp's name for how tokenizer.json cuts text before BPE; never a guess."""
    normalizer = content.get("normalizer") or {"type": "NFC"}
    steps = _pre_tokenizer_steps(content.get("pre_tokenizer") or {})
    whole_words = bool(content["model"].get("ignore_merges", False))
    # llama.cpp does not normalise: texts that are not in NFC may be cut differently, as with
    # every GGUF file of these models. Any other normalizer would change ordinary text.
    name = _PRE_TOKENIZERS.get((steps, whole_words))
    if name is None or normalizer["type"] != "NFC":
        known = sorted(set(_PRE_TOKENIZERS.values()))
        raise UnsupportedModelError(
            f"the tokenizer cuts text in a way that has no known name in llama.cpp: "
            f"pre-tokenizer {' + '.join(steps) or 'none'}, normalizer {normalizer['type']}, "
            f"ignore_merges {whole_words}. Known: {', '.join(known)}. Give a GGUF file of the "
            "model instead."
        )
    return name


def _pre_tokenizer_steps(pre: Mapping[str, Any]) -> tuple[str, ...]:
    """The steps in plain words; a regex stands for itself. Offsets play no part in token ids."""
    kind = pre.get("type")
    if kind == "Sequence":
        return tuple(step for inner in pre["pretokenizers"] for step in _pre_tokenizer_steps(inner))
    if kind == "Digits" and pre.get("individual_digits"):
        return ("digits",)
    if kind == "ByteLevel" and not pre.get("add_prefix_space"):
        return ("bytes with GPT-2's regex" if pre.get("use_regex", True) else "bytes",)
    if kind == "Split" and pre.get("behavior") == "Isolated" and not pre.get("invert"):
        pattern = pre["pattern"]
        return (str(pattern["Regex"]) if "Regex" in pattern else json.dumps(pattern),)
    return (json.dumps(pre, ensure_ascii=False),) if pre else ()


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece merges the pair of the highest score first: minus the rank of the merge."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _prepends_space(content: Mapping[str, Any]) -> bool:
    text = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
    return '"Prepend"' in text or '"always"' in text or '"first"' in text


def add_vocabulary(writer: GGUFWriter, vocabulary: TokenizerTables, checkpoint: Path) -> None:
    import gguf

    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    # It warns about templates for pairs of texts, which play no part here.
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    special = gguf.SpecialVocab(
        checkpoint, load_merges=vocabulary.scores is None, n_vocab=len(vocabulary.tokens)
    )
    # What the tokenizer really does, in place of gguf's reading of its configuration.
    special.add_special_token = {"bos": vocabulary.add_bos, "eos": vocabulary.add_eos}
    special.add_to_gguf(writer, quiet=True)


def copy_vocabulary(writer: GGUFWriter, source: Path, rows: int) -> None:
    """Writes the tokenizer and the chat template of another GGUF file, key by key.

    Raises:
        UnsupportedModelError: That file's vocabulary is not of ``rows`` tokens.
    """
    import gguf

    fields = gguf.GGUFReader(source).fields
    tokens = len(fields["tokenizer.ggml.tokens"].data)
    if tokens != rows:
        raise UnsupportedModelError(
            f"{str(source)!r} has {tokens} tokens and the checkpoint {rows} embeddings: they are "
            "not of one model."
        )
    writer.add_vocab_size(tokens)
    for name, field in fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)


def check_loads(path: Path) -> None:
    """Refuses an export that llama.cpp cannot load: every tensor's shape, none of the weights."""
    from tierwise.runtime.llama import Model

    try:
        Model(path, no_alloc=True).close()
    except ModelError as error:
        raise UnsupportedModelError(
            f"the checkpoint was converted, but llama.cpp does not take the result: {error} Give "
            "a GGUF file of the model instead."
        ) from error


def check_vocabulary(path: Path, vocabulary: TokenizerTables) -> None:
    """Refuses a conversion if llama.cpp cuts ordinary text differently."""
    from tierwise.runtime.llama import Model

    with Model(path, no_alloc=True) as model:
        for text in _PROBES:
            wanted = vocabulary.original.encode(text, add_special_tokens=False).ids
            found = model.tokenize(text)
            if found != wanted:
                raise UnsupportedModelError(
                    f"llama.cpp's {vocabulary.pre!r} tokenizer makes {found} of {text!r}, the "
                    f"original {wanted}. Give a GGUF file of the model instead."
                )
