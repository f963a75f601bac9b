"""A transformers checkpoint becomes an F16 GGUF file, without a llama.cpp checkout.

The shapes are those of `export_shape.SHAPES`. Weights are read and written one tensor at a
time, no code of the checkpoint is run, and the tokenizer that was written is compared with the
original before the file gets its name. `dequantize` is the way back.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tierwise.compression.checkpoint import (
    StoredTensor,
    find_weights,
    licence_of,
    opened_weights,
    read_json,
)
from tierwise.compression.export_shape import Shape, add_shape, llama3_factors, read_shape
from tierwise.compression.export_tokenizer import (
    add_vocabulary,
    check_loads,
    check_vocabulary,
    copy_vocabulary,
    read_vocabulary,
)
from tierwise.runtime.chat_template import TAUGHT_TOOLS
from tierwise.runtime.errors import DamagedModelError, MissingExtraError, UnsupportedModelError
from tierwise.runtime.files import disk_full_named

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is finished, 0..1."""


def export_gguf(
    checkpoint: Path,
    target: Path,
    *,
    name: str | None = None,
    vocabulary_from: Path | None = None,
    taught_tools: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Writes the checkpoint as an F16 GGUF file (norms and biases in F32).

    Args:
        checkpoint: Folder with config.json, *.safetensors and tokenizer.json.
        target: Written whole or not at all.
        name: For ``general.name``; the folder's name if not given.
        vocabulary_from: A GGUF file whose tokenizer and chat template are taken as they are, for
            a checkpoint that came of it; the checkpoint needs no tokenizer then.
        taught_tools: The model calls tools without being shown how, though its template knows
            nothing of them.

    Raises:
        MissingExtraError: gguf, safetensors, torch or tokenizers is not installed.
        ModelNotFoundError, DamagedModelError: A file of the checkpoint is missing or broken.
        UnsupportedModelError: An architecture, RoPE scaling or tokenizer that cannot be
            written without guessing.
        DiskFullError: No room; nothing is left behind.
    """
    need_extra("a transformers checkpoint", "a GGUF file as the base needs none of it")
    import gguf

    report = progress or (lambda message, done: None)
    report("reading the configuration", 0.0)
    config = read_json(checkpoint / "config.json")
    shape = read_shape(config)
    weights = find_weights(checkpoint)
    plan = _plan_tensors(weights, shape)
    rows = plan["token_embd.weight"].rows
    vocabulary = None if vocabulary_from else read_vocabulary(checkpoint, rows=rows)

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
                if taught_tools:
                    writer.add_bool(TAUGHT_TOOLS, True)
                add_shape(writer, shape)
                if vocabulary_from is not None:
                    copy_vocabulary(writer, vocabulary_from, rows)
                elif vocabulary is not None:
                    add_vocabulary(writer, vocabulary, checkpoint)
                _write_tensors(writer, plan, shape, report)
            finally:
                writer.close()
            report("checking the file", 1.0)
            check_loads(part)
            if vocabulary is not None:
                check_vocabulary(part, vocabulary)
            part.replace(target)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
    return target


def need_extra(what: str, instead: str) -> None:
    """Refuses a conversion whose packages are not installed; says what works without them."""
    for package in ("gguf", "safetensors", "tokenizers", "torch"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"{what} cannot be converted without the package {package!r}: "
                f"pip install 'tierwise[compress]' ({instead})"
            )


def _plan_tensors(weights: Mapping[str, StoredTensor], shape: Shape) -> dict[str, StoredTensor]:
    """GGUF name → source tensor, in the order of writing; nothing may be left over or missing."""
    import gguf

    architecture = {kind: number for number, kind in gguf.MODEL_ARCH_NAMES.items()}
    mapping = gguf.get_tensor_name_map(architecture[shape.architecture], shape.layers)
    plan: dict[str, StoredTensor] = {}
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
    writer: GGUFWriter, plan: Mapping[str, StoredTensor], shape: Shape, report: Progress
) -> None:
    import numpy as np

    extra: dict[str, Tensor] = {}
    if shape.rope["rope_type"] == "llama3":
        extra["rope_freqs.weight"] = llama3_factors(shape)
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


def _convert(source: StoredTensor, name: str, shape: Shape) -> Tensor:
    """The tensor as GGUF wants it: matrices in F16, vectors in F32, q and k of llama permuted."""
    import torch

    with opened_weights(source.file) as file:
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
