"""The tokenizer of a GGUF file as transformers reads it: tokenizer.json and its company."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierwise.compression.export_tokenizer import LLAMA3_SPLIT, QWEN2_SPLIT, TEKKEN_SPLIT
from tierwise.runtime.errors import DamagedModelError, UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPLITS = {
    "qwen2": QWEN2_SPLIT,
    "deepseek-r1-qwen": QWEN2_SPLIT,
    "llama-bpe": LLAMA3_SPLIT,
    "llama3": LLAMA3_SPLIT,
    "llama-v3": LLAMA3_SPLIT,
    "smaug-bpe": LLAMA3_SPLIT,
    "tekken": TEKKEN_SPLIT,
}
"""llama.cpp's names (src/llama-vocab.cpp) → the regex that cuts text into words."""

_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Where a word that is a token is never merged from parts."""

_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def write_tokenizer(keys: Mapping[str, Any], folder: Path, *, rows: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Args:
        keys: The file's ``gguf.ReaderField`` by name.
        rows: Of the embedding; token lists of another length are refused.

    Raises:
        DamagedModelError: A key is missing, or the lists do not fit each other.
        UnsupportedModelError: A tokenizer that is neither byte-level BPE nor SentencePiece's
            BPE, or cuts text in a way that is not known here.
    """
    values = {
        name.removeprefix("tokenizer.").removeprefix("ggml."): field
        for name, field in keys.items()
        if name.startswith("tokenizer.")
    }

    def value(name: str, default: Any = None) -> Any:
        field = values.get(name)
        return default if field is None else field.contents()

    tokens, types = value("tokens", []), value("token_type", [])
    if not tokens or len(tokens) != len(types) or len(tokens) != rows:
        raise DamagedModelError(
            f"the GGUF file has {len(tokens)} tokens and {len(types)} types for {rows} embeddings. "
            "Download it again."
        )
    kind = value("model")
    if kind == "gpt2":
        tokenizer = _byte_level(tokens, types, value("merges", []), str(value("pre", "default")))
    elif kind == "llama":
        space = bool(value("add_space_prefix", True))
        tokenizer = _sentencepiece(tokens, types, value("scores", []), space=space)
    else:
        raise UnsupportedModelError(
            f"the GGUF file has a {kind!r} tokenizer; only byte-level BPE ('gpt2') and "
            "SentencePiece's ('llama') can be converted. Give the model's transformers folder."
        )
    special = {
        f"{role}_token": tokens[int(value(f"{name}_token_id"))]
        for role, name in _ROLES.items()
        if value(f"{name}_token_id") is not None
    }
    _add_ends(tokenizer, special, bos=bool(value("add_bos_token", kind == "llama")))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    config["clean_up_tokenization_spaces"] = False
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    if (template := value("chat_template")) is not None:
        (folder / "chat_template.jinja").write_text(str(template), encoding="utf-8")


def _byte_level(tokens: list[str], types: list[int], merges: list[str], pre: str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(
        _model(
            lambda: BPE(
                vocab=_vocabulary(tokens, types),
                merges=[_pair(merge) for merge in merges],
                ignore_merges=pre in _WHOLE_WORDS,
            )
        )
    )
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _SPLITS)
    if pre in _SPLITS:
        first = pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated", False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_only])
    elif pre == "smollm":
        digits = pre_tokenizers.Digits(True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_only])
    elif pre == "gpt-2":
        tokenizer.pre_tokenizer = bytes_only
    else:
        known = ", ".join(sorted({*_SPLITS, "smollm", "gpt-2"}))
        raise UnsupportedModelError(
            f"llama.cpp's pre-tokenizer {pre!r} has no known form in tokenizer.json; known are "
            f"{known}. Give the model's transformers folder instead."
        )
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def _sentencepiece(
    tokens: list[str], types: list[int], scores: list[float], *, space: bool
) -> Tokenizer:
    from gguf import TokenType
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    if len(scores) != len(tokens):
        raise DamagedModelError(
            f"the GGUF file has {len(scores)} scores for {len(tokens)} tokens. Download it again."
        )
    vocabulary = _vocabulary(tokens, types)
    normal = {text for text, i in vocabulary.items() if types[i] == TokenType.NORMAL}
    merges: list[tuple[str, str]] = []
    # SentencePiece joins the neighbours whose joint piece has the highest score.
    for text in sorted(normal, key=lambda text: (-scores[vocabulary[text]], vocabulary[text])):
        cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        pairs = [pair for pair in cuts if pair[0] in normal and pair[1] in normal]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    unknown = next((tokens[i] for i, kind in enumerate(types) if kind == TokenType.UNKNOWN), None)
    tokenizer = Tokenizer(
        _model(
            lambda: BPE(
                vocab=vocabulary,
                merges=merges,
                unk_token=unknown,
                fuse_unk=True,
                byte_fallback=True,
            )
        )
    )
    prepend = [normalizers.Prepend("▁")] if space else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def _model(make: Any) -> Any:
    try:
        return make()
    except Exception as error:  # tokenizers raises Exception itself
        raise DamagedModelError(
            f"the GGUF file's tokenizer makes no sense ({error}). Download the model again."
        ) from error


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Token number by text; the spare rows of the embedding have none."""
    from gguf import TokenType

    return {text: i for i, text in enumerate(tokens) if types[i] != TokenType.UNUSED}


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Marks what is recognised in text before anything is merged."""
    from gguf import TokenType
    from tokenizers import AddedToken

    for text, kind in zip(tokens, types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        elif kind == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(text, special=False, normalized=False)])


def _add_ends(tokenizer: Tokenizer, special: Mapping[str, str], *, bos: bool) -> None:
    """The token that starts every text, for models that want one."""
    from tokenizers.processors import TemplateProcessing

    start = special.get("bos_token")
    if bos and start is not None:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{start} $A",
            pair=f"{start} $A {start} $B",
            special_tokens=[(start, tokenizer.token_to_id(start))],
        )
