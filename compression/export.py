"""A transformers checkpoint becomes an F16 GGUF file, without a llama.cpp checkout.

The shapes are those of `SHAPES`. Weights are read and written one tensor at a time, no code
of the checkpoint is run, and the tokenizer that was written is compared with the original
before the file gets its name.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tierwise.runtime.errors import (
    DamagedModelError,
    MissingExtraError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from tierwise.runtime.files import disk_full_named

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is finished, 0..1."""

SHAPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""transformers class → GGUF architecture. SmolLM and TinyLlama are Llama."""

# Pre-tokenizers by the name that llama.cpp gives them (src/llama-vocab.cpp). The key is what
# `_pre_tokenizer_steps` makes of tokenizer.json, then whether whole words skip the merges.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    (("digits", "bytes with GPT-2's regex"), False): "smollm",
    (("bytes with GPT-2's regex",), False): "gpt-2",
    ((_QWEN2, "bytes"), False): "qwen2",
    ((_LLAMA3, "bytes"), True): "llama-bpe",
    ((_LLAMA3, "bytes"), False): "smaug-bpe",  # the same regex, merges always apply
    ((_TEKKEN, "bytes"), True): "tekken",
    ((_TEKKEN, "bytes"), False): "tekken",  # llama.cpp has one form; `_check_written` decides
}

_PROBES = (
    "Hello world! It's 18 degrees, isn't it? They'll SAY so.",
    "  two spaces,\ttab\n\n\nthree lines \r\n and an end  ",
    "def f(x):\n    return x['a'] + 12345.678  # sum!=\n",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "n": -1e10}}',
    "Äpfel, œufs, maçãs; 東京は晴れ。 Привет мир, مرحبا 🎉👩‍🚀 ½ ②",
)


def export_gguf(
    checkpoint: Path, target: Path, *, name: str | None = None, progress: Progress | None = None
) -> Path:
    """Writes the checkpoint as an F16 GGUF file (norms and biases in F32).

    Args:
        checkpoint: Folder with config.json, *.safetensors and tokenizer.json.
        target: Written whole or not at all.
        name: For ``general.name``; the folder's name if not given.

    Raises:
        MissingExtraError: gguf, safetensors, torch or tokenizers is not installed.
        ModelNotFoundError, DamagedModelError: A file of the checkpoint is missing or broken.
        UnsupportedModelError: An architecture, RoPE scaling or tokenizer that cannot be
            written without guessing.
        DiskFullError: No room; nothing is left behind.
    """
    _need_extra()
    import gguf

    report = progress or (lambda message, done: None)
    report("reading the configuration", 0.0)
    config = _read_json(checkpoint / "config.json")
    shape = _read_shape(config)
    weights = _find_weights(checkpoint)
    plan = _plan_tensors(weights, shape)
    vocabulary = _read_vocabulary(checkpoint, rows=plan["token_embd.weight"].rows)

    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_named(target):
        try:
            writer = gguf.GGUFWriter(part, shape.architecture)
            try:
                writer.add_type("model")
                writer.add_name(name or checkpoint.resolve().name)
                licence = licence_of(checkpoint)
                if licence is not None:
                    writer.add_license(licence)
                writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
                writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
                _add_shape(writer, shape)
                _add_vocabulary(writer, vocabulary, checkpoint)
                _write_tensors(writer, plan, shape, report)
            finally:
                writer.close()
            report("checking the file", 1.0)
            _check_written(part, vocabulary)
            part.replace(target)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
    return target


def licence_of(checkpoint: Path) -> str | None:
    """The licence that README.md's front matter names, in lower case; ``None`` if none."""
    readme = checkpoint / "README.md"
    if not readme.is_file():
        return None
    lines = readme.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return None
    try:
        front = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except yaml.YAMLError:
        return None  # A model card is written by hand; its mistakes do not stop an export.
    if not isinstance(front, dict):
        return None
    licence = front.get("license")
    if licence == "other":
        licence = front.get("license_name") or licence
    return str(licence).lower() if licence else None


def _need_extra() -> None:
    for package in ("gguf", "safetensors", "tokenizers", "torch"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"a transformers checkpoint cannot be converted without the package {package!r}: "
                "pip install 'tierwise[compress]' (a GGUF file as the base needs none of it)"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"{str(path)!r} is missing. A checkpoint needs config.json, *.safetensors and "
            "tokenizer.json; download the model's folder again."
        ) from error
    except ValueError as error:
        raise DamagedModelError(
            f"{str(path)!r} is not valid JSON ({error}). Download it again."
        ) from error
    if not isinstance(content, dict):
        raise DamagedModelError(f"{str(path)!r} holds no JSON object. Download it again.")
    return content


# --- the shape ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """What config.json says, in GGUF's terms. Sizes are counts of numbers."""

    architecture: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rms_eps: float
    tied: bool
    rope: Mapping[str, Any]

    @property
    def permutes(self) -> bool:
        """Whether llama.cpp wants rotary pairs side by side (transformers: in two halves)."""
        return self.architecture == "llama"


def _read_shape(config: Mapping[str, Any]) -> _Shape:
    names = config.get("architectures") or ["none"]
    if names[0] not in SHAPES:
        raise UnsupportedModelError(
            f"cannot convert the architecture {names[0]!r}; supported are {', '.join(SHAPES)}. "
            "Give a GGUF file of the model instead."
        )
    for key, wanted in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0)):
        if config.get(key, wanted) != wanted:
            raise UnsupportedModelError(
                f"cannot convert a model with {key} {config[key]!r}; only {wanted!r} is known "
                "to match llama.cpp. Give a GGUF file of the model instead."
            )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"the checkpoint is quantized already ({method}). Give the unquantized original."
        )
    try:
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        context = int(config["max_position_embeddings"])
        window = config.get("sliding_window")
        if window and config.get("use_sliding_window", True):
            # llama.cpp attends to everything for these shapes: equal up to the window only.
            context = min(context, int(window))
        return _Shape(
            architecture=SHAPES[names[0]],
            layers=int(config["num_hidden_layers"]),
            width=width,
            ffn=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or width // heads),
            context=context,
            rms_eps=float(config["rms_norm_eps"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            rope=_read_rope(config),
        )
    except KeyError as error:
        raise DamagedModelError(
            f"config.json has no {error.args[0]!r}. Download it again."
        ) from error


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE parameters with keys ``rope_theta`` and ``rope_type``, of old and new transformers."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault(
        "original_max_position_embeddings",
        config.get("original_max_position_embeddings") or config.get("max_position_embeddings"),
    )
    # llama.cpp computes YaRN's magnitude itself; these would ask for another.
    odd = {"attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate"}
    odd = {key for key in odd & rope.keys() if rope[key] is not None}
    if rope["rope_type"] not in ("default", "linear", "yarn", "llama3") or odd:
        raise UnsupportedModelError(
            f"cannot convert the RoPE scaling {rope}; supported are default, linear, llama3, and "
            "yarn with its default magnitudes. Give a GGUF file of the model instead."
        )
    return rope


def _add_shape(writer: GGUFWriter, shape: _Shape) -> None:
    import gguf

    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    if shape.head_dim * shape.heads != shape.width:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(float(shape.rope["rope_theta"]))
    kind = shape.rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(shape.rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(shape.rope["original_max_position_embeddings"]))


def _llama3_factors(shape: _Shape) -> Tensor:
    """What Llama 3.1 divides each rotary frequency by, (head_dim / 2,) float32.

    Long wavelengths are stretched by ``factor``, short ones stay, those between are blended:
    transformers' ``_compute_llama3_parameters``.
    """
    import torch

    low, high = float(shape.rope["low_freq_factor"]), float(shape.rope["high_freq_factor"])
    factor = float(shape.rope["factor"])
    original = int(shape.rope["original_max_position_embeddings"])
    factors = []
    for pair in range(shape.head_dim // 2):
        frequency = float(shape.rope["rope_theta"]) ** (-2 * pair / shape.head_dim)
        turns = original * frequency / (2 * math.pi)  # within the original context
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / (blend + (1 - blend) / factor))
    return torch.tensor(factors, dtype=torch.float32)


# --- the tensors ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """One tensor of the checkpoint: where it is and its shape, outermost first."""

    file: Path
    key: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.shape[0]


def _find_weights(checkpoint: Path) -> dict[str, _Source]:
    """Every tensor of the checkpoint by its transformers name."""
    index = checkpoint / "model.safetensors.index.json"
    single = checkpoint / "model.safetensors"
    if index.is_file():
        files = sorted(set(_read_json(index).get("weight_map", {}).values()))
        missing = [file for file in files if not (checkpoint / file).is_file()]
        if missing:
            raise ModelNotFoundError(
                f"{str(checkpoint)!r} lacks {', '.join(missing)}, which {index.name} names. "
                "Download the missing files."
            )
        paths = [checkpoint / file for file in files]
    else:
        # Mistral ships the same weights twice: consolidated.safetensors is not for transformers.
        paths = [single] if single.is_file() else sorted(checkpoint.glob("*.safetensors"))
    if not paths:
        raise ModelNotFoundError(f"no *.safetensors in {str(checkpoint)!r}. Download them.")
    found: dict[str, _Source] = {}
    for path in paths:
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                found[key] = _Source(path, key, tuple(file.get_slice(key).get_shape()))
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise DamagedModelError(
            f"{str(path)!r} is not a whole safetensors file ({error}). Download it again."
        ) from error


def _plan_tensors(weights: Mapping[str, _Source], shape: _Shape) -> dict[str, _Source]:
    """GGUF name → source tensor, in the order of writing; nothing may be left over or missing."""
    import gguf

    architecture = {kind: number for number, kind in gguf.MODEL_ARCH_NAMES.items()}
    mapping = gguf.get_tensor_name_map(architecture[shape.architecture], shape.layers)
    plan: dict[str, _Source] = {}
    for key, source in weights.items():
        if key.endswith("rotary_emb.inv_freq") or (shape.tied and key == "lm_head.weight"):
            continue
        target = mapping.get_name(key, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise UnsupportedModelError(
                f"{source.file.name} has a tensor {key!r} that a {shape.architecture} model of "
                f"{shape.layers} layers has no place for. Give a GGUF file of the model instead."
            )
        plan[target] = source
    layer = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"]
    layer += ["ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    needed = ["token_embd.weight", "output_norm.weight"]
    needed += [] if shape.tied else ["output.weight"]
    needed += [f"blk.{i}.{part}.weight" for i in range(shape.layers) for part in layer]
    missing = [key for key in needed if key not in plan]
    if missing:
        raise DamagedModelError(
            f"the checkpoint lacks {len(missing)} of its tensors, such as {missing[0]!r} (GGUF "
            "name). Download it again."
        )
    return plan


def _write_tensors(
    writer: GGUFWriter, plan: Mapping[str, _Source], shape: _Shape, report: Progress
) -> None:
    import numpy as np

    extra: dict[str, Tensor] = {}
    if shape.rope["rope_type"] == "llama3":
        extra["rope_freqs.weight"] = _llama3_factors(shape)
    for key, tensor in extra.items():
        writer.add_tensor_info(key, tensor.shape, np.dtype(np.float32), tensor.nbytes)
    for key, source in plan.items():
        dtype = np.dtype(np.float16 if len(source.shape) > 1 else np.float32)
        writer.add_tensor_info(key, source.shape, dtype, math.prod(source.shape) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()

    # Written here, not by the writer: numpy's tofile() hides that a disk is full.
    file = next(iter(writer.fout or []))

    def write(tensor: Tensor) -> None:
        writer.write_padding(file, file.tell())
        file.write(tensor.contiguous().numpy().data)
        writer.write_padding(file, file.tell())

    for tensor in extra.values():
        write(tensor)
    for done, (key, source) in enumerate(plan.items()):
        report(f"converting {source.key}", done / len(plan))
        write(_convert(source, key, shape))
    file.flush()


def _convert(source: _Source, name: str, shape: _Shape) -> Tensor:
    """The tensor as GGUF wants it: matrices in F16, vectors in F32, q and k of llama permuted."""
    import torch

    with _opened(source.file) as file:
        tensor: Tensor = file.get_tensor(source.key)
    for part, heads in ((".attn_q.", shape.heads), (".attn_k.", shape.kv_heads)):
        if part in name and shape.permutes:
            half = tensor.shape[0] // heads // 2
            pairs = tensor.reshape(heads, 2, half, *tensor.shape[1:])
            tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
    converted = tensor.to(torch.float16 if tensor.ndim > 1 else torch.float32)
    if not bool(torch.isfinite(converted).all()):
        if bool(torch.isfinite(tensor).all()):
            raise UnsupportedModelError(
                f"{source.key!r} has values beyond ±65504, the largest that F16 holds. Give a "
                "GGUF file of the model instead (BF16 or F32)."
            )
        raise DamagedModelError(
            f"{source.key!r} in {str(source.file)!r} holds NaN or infinity. Download it again."
        )
    return converted


# --- the tokenizer --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Vocabulary:
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


def _read_vocabulary(checkpoint: Path, rows: int) -> _Vocabulary:
    """Reads tokenizer.json. ``rows`` is the number of embeddings; rows to spare get no text."""
    from gguf import TokenType
    from tokenizers import Tokenizer

    path = checkpoint / "tokenizer.json"
    if not path.is_file() and (checkpoint / "tokenizer.model").is_file():
        raise UnsupportedModelError(
            f"{str(checkpoint)!r} has SentencePiece's tokenizer.model only. Save the tokenizer "
            "with transformers' AutoTokenizer (use_fast=True), which writes tokenizer.json."
        )
    content = _read_json(path)
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
    return _Vocabulary(
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


def _add_vocabulary(writer: GGUFWriter, vocabulary: _Vocabulary, checkpoint: Path) -> None:
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


def _check_written(path: Path, vocabulary: _Vocabulary) -> None:
    """Refuses the export if llama.cpp cannot load it or cuts ordinary text differently."""
    from tierwise.runtime.llama import Model

    try:
        model = Model(path, no_alloc=True)  # every tensor's shape, none of the weights
    except ModelError as error:
        raise UnsupportedModelError(
            f"the checkpoint was converted, but llama.cpp does not take the result: {error} Give "
            "a GGUF file of the model instead."
        ) from error
    with model:
        for text in _PROBES:
            wanted = vocabulary.original.encode(text, add_special_tokens=False).ids
            found = model.tokenize(text)
            if found != wanted:
                raise UnsupportedModelError(
                    f"llama.cpp's {vocabulary.pre!r} tokenizer makes {found} of {text!r}, the "
                    f"original {wanted}. Give a GGUF file of the model instead."
                )
