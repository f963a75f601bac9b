"""A model that was adapted, on disk: ``adapted.json`` and one safetensors file. No pickle.

The weights' file is named after its contents and written first; the record that names it is
written last and replaced in one go. A crash leaves the old model or the new one, whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from tierwise.compression.adapter.anatomy import COUNTS
from tierwise.compression.adapter.compact import CompactEmbedding
from tierwise.compression.adapter.quantized import (
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedWeight,
)
from tierwise.compression.adapter.size import stored_tensors, tied_names
from tierwise.compression.checkpoint import read_json
from tierwise.runtime.errors import DamagedModelError, UnsupportedModelError
from tierwise.runtime.files import disk_full_named, sha256_of, write_atomically
from tierwise.runtime.units import first_problem

RECORD = "adapted.json"
VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    kind: str = Field(description="class of transformers")
    config: dict[str, Any]
    modules: dict[str, dict[str, Any]] = Field(description="by name, those that hold matrices")
    counts: dict[str, dict[str, int]] = Field(description="attributes of modules, by their name")
    buffers: dict[str, str] = Field(description="types of buffers that are worked out, not stored")
    tied: dict[str, str]
    weights: str = Field(pattern=r"^model-[0-9a-f]{16}\.safetensors$")
    sha256: str


def save_adapted(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Writes a model, in whatever shape it is now. Returns the file of its weights.

    Raises:
        UnsupportedModelError: Its class is none of transformers, so that nobody could load it.
        DiskFullError: No room; what was there before is untouched.
    """
    _class_named(type(model).__name__, type(model))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.cpu().contiguous() for name, t in stored_tensors(model).items()}
    part = folder / "weights.part"
    try:
        with disk_full_named(folder), part.open("wb") as file:
            file.write(save(tensors))
            file.flush()
            os.fsync(file.fileno())
        sha256 = sha256_of(part)
        target = folder / f"model-{sha256[:16]}.safetensors"
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    config: Any = model.config
    record = _Record(
        version=VERSION,
        kind=type(model).__name__,
        config=config.to_dict(),
        modules={name: told for name, module in model.named_modules() if (told := _told(module))},
        counts={name: told for name, module in model.named_modules() if (told := _counts(module))},
        buffers=_buffers(model),
        tied=tied_names(model),
        weights=target.name,
        sha256=sha256,
    )
    write_atomically(folder / RECORD, record.model_dump_json(indent=1))
    for old in folder.glob("model-*.safetensors"):
        if old != target:
            old.unlink(missing_ok=True)
    return target


def load_adapted(folder: str | os.PathLike[str]) -> Any:
    """The model that `save_adapted` wrote, in evaluation mode. Runs no code of the folder.

    Raises:
        ModelNotFoundError: There is none.
        DamagedModelError: The record or the weights are not what was written.
        UnsupportedModelError: Written by a newer Tierwise, or a class that this transformers lacks.
    """
    folder = Path(folder)
    record = _read_record(folder / RECORD)
    path = folder / record.weights
    if not path.is_file():
        raise DamagedModelError(f"{str(path)!r} is missing. Save the model again.")
    if sha256_of(path) != record.sha256:
        raise DamagedModelError(
            f"{str(path)!r} is not the file that {RECORD} was written for. Save the model again."
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedModelError(f"{str(path)!r} cannot be read ({error}).") from error
    model = _built(record)
    try:
        _rebuild(model, record)
        _fill(model, tensors, record.tied)
    except (RuntimeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedModelError(
            f"{str(folder / RECORD)!r} does not describe the weights beside it: {error}"
        ) from error
    return model.eval()


def _read_record(path: Path) -> _Record:
    content = read_json(path)
    if content.get("version", 0) != VERSION:
        raise UnsupportedModelError(
            f"{str(path)!r} has the version {content.get('version')!r}, and this Tierwise reads "
            f"{VERSION}. Use the Tierwise that wrote it, or a newer one."
        )
    try:
        return _Record.model_validate(content)
    except ValidationError as error:
        raise DamagedModelError(f"{str(path)!r}: {first_problem(error, 'field')}") from error


def _class_named(name: str, expected: type | None = None) -> Any:
    import transformers

    found = getattr(transformers, name, None)
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if not known or expected not in (None, found):
        raise UnsupportedModelError(
            f"{name} is no model class of transformers {transformers.__version__}, and others are "
            "not loaded from files. Keep its weights with safetensors.torch.save_model."
        )
    return found


def _built(record: _Record) -> Any:
    from transformers import CONFIG_MAPPING

    kind = _class_named(record.kind)
    fields = {key: value for key, value in record.config.items() if key != "auto_map"}
    name = str(fields.get("model_type"))
    if name not in CONFIG_MAPPING:
        raise UnsupportedModelError(f"this transformers knows no model type {name!r}")
    try:
        return kind(CONFIG_MAPPING[name].from_dict(fields))
    except Exception as error:
        raise DamagedModelError(f"the config of {record.kind} makes no model: {error}") from error


def _told(module: nn.Module) -> dict[str, Any]:
    """What it takes to make a module again; nothing for those that the class makes itself."""
    if isinstance(module, QuantizedWeight):
        stored = {"bits": module.bits, "group": module.group, "dtype": str(module.dtype)[6:]}
        if isinstance(module, QuantizedEmbedding):
            return {
                "kind": "quantized_embedding",
                "shape": [module.num_embeddings, module.embedding_dim],
                "padding_idx": module.padding_idx,
                "factor": module.factor,
                **stored,
            }
        assert isinstance(module, QuantizedLinear)
        shape = [module.in_features, module.out_features]
        bias = module.bias is not None
        return {"kind": "quantized_linear", "shape": shape, "bias": bias, **stored}
    if isinstance(module, CompactEmbedding):
        return {
            "kind": "compact_embedding",
            "shape": [module.num_embeddings, module.embedding_dim],
            "rows": module.kept,
            "rank": module.rank,
            "padding_idx": module.padding_idx,
        }
    if type(module) is nn.Linear:
        shape = [module.in_features, module.out_features]
        return {"kind": "linear", "shape": shape, "bias": module.bias is not None}
    return {}


def _make(told: dict[str, Any]) -> nn.Module:
    fields = dict(told)
    kind, shape = fields.pop("kind"), fields.pop("shape")
    if "dtype" in fields:
        fields["dtype"] = getattr(torch, fields["dtype"])
    kinds: dict[str, Any] = {
        "quantized_embedding": QuantizedEmbedding,
        "quantized_linear": QuantizedLinear,
        "compact_embedding": CompactEmbedding,
        "linear": nn.Linear,
    }
    made: nn.Module = kinds[kind](*shape, **fields)
    return made


def _counts(module: nn.Module) -> dict[str, int]:
    values = {name: module.__dict__.get(name) for name in COUNTS}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def _buffers(model: nn.Module) -> dict[str, str]:
    """`model.half()` and the like cast what a new model works out anew (rotary frequencies)."""
    stored = model.state_dict().keys()
    return {
        name: str(buffer.dtype)[6:]
        for name, buffer in model.named_buffers()
        if name not in stored and buffer.is_floating_point()
    }


def _rebuild(model: nn.Module, record: _Record) -> None:
    for name, told in record.modules.items():  # parents come before what they hold
        if _told(model.get_submodule(name)) != told:
            model.set_submodule(name, _make(told))
    for name, counts in record.counts.items():
        module = model.get_submodule(name)
        for attribute, count in counts.items():
            setattr(module, attribute, count)
    for name, dtype in record.buffers.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, attribute, module.get_buffer(attribute).to(getattr(torch, dtype)))


def _fill(model: nn.Module, tensors: dict[str, Any], tied: dict[str, str]) -> None:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    filled: dict[str, Any] = {
        name: nn.Parameter(tensor) if name in parameters else tensor
        for name, tensor in tensors.items()
    }
    # One object for all names of shared weights, so that they stay shared.
    filled |= {name: filled[first] for name, first in tied.items()}
    model.load_state_dict(filled, strict=True, assign=True)
