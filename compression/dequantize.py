"""A GGUF file becomes a transformers checkpoint: the way back of `export`.

Training works on transformers models, and many bases exist as GGUF only. Weights are read,
dequantized and written one tensor at a time. Of a quantized base this gives what llama.cpp
computes with, not the weights that its author once had.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierwise.compression.checkpoint import save_weights
from tierwise.compression.dequantize_tokenizer import write_tokenizer
from tierwise.compression.export import Progress, need_extra
from tierwise.compression.export_shape import SHAPES, Shape, llama3_factors, read_shape
from tierwise.compression.export_tokenizer import check_vocabulary, read_vocabulary
from tierwise.compression.source import BaseSource
from tierwise.runtime.errors import DamagedModelError, UnsupportedModelError
from tierwise.runtime.files import FileHashes, disk_full_named

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from torch import Tensor

# Raise it when `checkpoint_of` writes something else than before for the same file.
_VERSION = 1

_SHARD_BYTES = 2_000_000_000

_LARGE = 1_500_000_000  # parameters; weights of larger models are written in F16, not F32

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of a model's parts → transformers', for the shapes of `export_shape.SHAPES`."""

_TENSOR = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


def checkpoint_of(base: BaseSource, folder: Path, *, progress: Progress | None = None) -> Path:
    """The base as a transformers checkpoint (config, safetensors, tokenizer, chat template).

    Args:
        base: One that came from a checkpoint has it already; nothing is written then.
        folder: Where converted checkpoints are kept, by the content of the GGUF file.
        progress: Called with what is being done and the share of it that is finished.

    Returns:
        The checkpoint's folder; it is written whole or not at all, and found again later.

    Raises:
        MissingExtraError: gguf, safetensors, torch or tokenizers is not installed.
        DamagedModelError: The file lacks a tensor or a key.
        UnsupportedModelError: An architecture, RoPE scaling or tokenizer that cannot be
            converted without guessing.
        DiskFullError: No room; nothing is left behind.
    """
    if base.checkpoint is not None:
        return base.checkpoint
    need_extra("a GGUF file", "a transformers folder as the base needs no conversion")
    key = FileHashes.shared().sha256(base.gguf)[:16]
    target = folder / f"checkpoint-{_VERSION}-{key}"
    if (target / "config.json").is_file():
        return target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with disk_full_named(target):
            part.mkdir(parents=True)
            _convert(base.gguf, part, progress or (lambda message, done: None))
            part.replace(target)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(part)
        raise
    return target


def _convert(path: Path, folder: Path, report: Progress) -> None:
    import gguf

    report("reading the GGUF file", 0.0)
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, KeyError, OSError) as error:
        raise DamagedModelError(
            f"{str(path)!r} is no whole GGUF file ({error}). Download it again."
        ) from error
    keys = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(keys, tensors)
    shape = read_shape(config)
    if "rope_freqs.weight" in tensors:
        config["rope_parameters"] = _llama3_rope(tensors.pop("rope_freqs.weight"), config)
    rows = int(config["vocab_size"])
    write_tokenizer(keys, folder, rows=rows)
    # Before the weights are written: whether llama.cpp and the new tokenizer agree.
    check_vocabulary(path, read_vocabulary(folder, rows=rows))
    _write_weights(tensors, shape, folder, report, halved=_count(reader) > _LARGE)
    text = json.dumps(config, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _count(reader: GGUFReader) -> int:
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


# --- config.json --------------------------------------------------------------------------


def _config(keys: Mapping[str, Any], tensors: Mapping[str, ReaderTensor]) -> dict[str, Any]:
    """config.json from the file's keys, the way transformers writes it."""
    values = {name: field.contents() for name, field in keys.items() if ".ggml." not in name}
    kind = str(values.get("general.architecture"))
    classes = {architecture: name for name, architecture in reversed(SHAPES.items())}
    if kind not in classes:
        raise UnsupportedModelError(
            f"a GGUF file of architecture {kind!r} cannot be made a transformers checkpoint; "
            f"known are {', '.join(sorted(classes))}. Give the model's transformers folder instead."
        )

    def number(key: str, default: float | None = None) -> Any:
        value = values.get(f"{kind}.{key}", default)
        if value is None:
            raise DamagedModelError(f"the GGUF file has no {kind}.{key}. Download it again.")
        if not isinstance(value, int | float):
            raise UnsupportedModelError(
                f"the GGUF file has one {kind}.{key} per layer, which a checkpoint cannot hold. "
                "Give the model's transformers folder instead."
            )
        return value

    if number("expert_count", 0):
        raise UnsupportedModelError(
            "a mixture of experts cannot be made a transformers checkpoint. Give the model's "
            "transformers folder instead."
        )
    if "token_embd.weight" not in tensors:
        raise DamagedModelError("the GGUF file has no token_embd.weight. Download it again.")
    width, heads = int(number("embedding_length")), int(number("attention.head_count"))
    head_dim = int(number("attention.key_length", width // heads))
    if int(number("rope.dimension_count", head_dim)) != head_dim:
        raise UnsupportedModelError(
            f"the GGUF file rotates {number('rope.dimension_count')} of {head_dim} dimensions "
            "only, which cannot be converted. Give the model's transformers folder instead."
        )
    special = {
        f"{role}_token_id": keys[f"tokenizer.ggml.{name}_token_id"].contents()
        for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{name}_token_id" in keys
    }
    return {
        "architectures": [classes[kind]],
        "model_type": kind,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": int(number("feed_forward_length")),
        "num_hidden_layers": int(number("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(number("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "max_position_embeddings": int(number("context_length")),
        # Stored in 32 bits; 1e-05 is meant where 9.999999747378752e-06 is read.
        "rms_norm_eps": float(f"{number('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": _rope(kind, values, number),
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "use_cache": True,
        **special,
    }


def _rope(kind: str, values: Mapping[str, Any], number: Any) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": str(values.get(f"{kind}.rope.scaling.type", "default")),
        "rope_theta": float(number("rope.freq_base", 10000.0)),
    }
    if rope["rope_type"] == "none":
        rope["rope_type"] = "default"
    if rope["rope_type"] != "default":
        rope["factor"] = float(number("rope.scaling.factor"))
    if rope["rope_type"] == "yarn":
        original = number("rope.scaling.original_context_length")
        rope["original_max_position_embeddings"] = int(original)
    return rope


def _llama3_rope(factors: ReaderTensor, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's RoPE scaling. GGUF keeps its factors only; the parameters are recognised."""
    import gguf
    import numpy as np

    stored = gguf.dequantize(factors.data, factors.tensor_type).reshape(-1)
    contexts = {8192, int(config["max_position_embeddings"])}
    contexts |= {int(config["max_position_embeddings"]) // part for part in (4, 8, 16, 32)}
    for context in sorted(contexts, reverse=True):
        rope = {
            "rope_type": "llama3",
            "rope_theta": config["rope_parameters"]["rope_theta"],
            "factor": round(float(stored.max()), 4),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        }
        wanted = llama3_factors(read_shape({**config, "rope_parameters": rope})).numpy()
        if wanted.shape == stored.shape and np.allclose(wanted, stored, rtol=1e-4):
            return rope
    raise UnsupportedModelError(
        f"the GGUF file scales RoPE's frequencies by up to {stored.max():.4g} in a way that is "
        "not Llama 3's. Give the model's transformers folder instead."
    )


# --- weights ------------------------------------------------------------------------------


def _write_weights(
    tensors: Mapping[str, ReaderTensor],
    shape: Shape,
    folder: Path,
    report: Progress,
    *,
    halved: bool,
) -> None:
    """Writes ``*.safetensors``, in files of about two gigabytes with an index."""
    files: list[dict[str, int]] = []  # bytes by tensor
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        save_weights(shard, folder / f"{len(files)}.safetensors")
        files.append({key: weight.nbytes for key, weight in shard.items()})
        shard.clear()

    for done, (name, tensor) in enumerate(tensors.items()):
        report(f"dequantizing {name}", done / len(tensors))
        weight = _weight(name, tensor, shape, halved=halved)
        if shard and sum(w.nbytes for w in shard.values()) + weight.nbytes > _SHARD_BYTES:
            flush()
        shard[transformers_name(name)] = weight
    flush()
    if len(files) == 1:
        (folder / "0.safetensors").rename(folder / "model.safetensors")
        return
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    for number, name in enumerate(names):
        (folder / f"{number}.safetensors").rename(folder / name)
    index = {
        "metadata": {"total_size": sum(sum(sizes.values()) for sizes in files)},
        "weight_map": {key: names[i] for i, sizes in enumerate(files) for key in sizes},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def transformers_name(name: str) -> str:
    """``blk.3.attn_q.weight`` → ``model.layers.3.self_attn.q_proj.weight``.

    Raises:
        UnsupportedModelError: A part that the shapes of `export_shape.SHAPES` do not have.
    """
    match = _TENSOR.fullmatch(name)
    if match is None or match["part"] not in _NAMES:
        raise UnsupportedModelError(
            f"the GGUF file has a tensor {name!r} that a transformers checkpoint of its "
            "architecture has no place for. Give the model's transformers folder instead."
        )
    layer = "" if match["layer"] is None else f"model.layers.{match['layer']}."
    return f"{layer}{_NAMES[match['part']]}.{match['kind']}"


def _weight(name: str, tensor: ReaderTensor, shape: Shape, *, halved: bool) -> Tensor:
    """One tensor in F32 (matrices in F16 if ``halved``), rotary pairs in transformers' order."""
    import gguf
    import numpy as np
    import torch

    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    # An own copy, as the file is mapped; outermost dimension first, the reverse of GGUF's.
    flat = np.array(values, dtype=np.float32).reshape([int(n) for n in reversed(tensor.shape)])
    weight = torch.from_numpy(flat)
    if not math.isfinite(float(weight.sum())):
        raise DamagedModelError(f"{name!r} holds NaN or infinity. Download the model again.")
    for part, heads in ((".attn_q.", shape.heads), (".attn_k.", shape.kv_heads)):
        if part in name and shape.permutes:
            half = weight.shape[0] // heads // 2
            pairs = weight.reshape(heads, half, 2, *weight.shape[1:])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape).contiguous()
    return weight.half() if halved and weight.ndim > 1 else weight
