"""GGUF to GGUF through llama.cpp's own quantizer: types, layer pruning, exact sizes.

Source: ``llama_model_quantize`` (llama.cpp, ``src/llama-quant.cpp``).
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from tierwise.compression.precision.header import Header, file_bytes, read_header
from tierwise.compression.precision.types import (
    FILE_TYPES,
    TensorType,
    fitting,
    tensor_type,
)
from tierwise.runtime.errors import BuildError, ConfigError, DiskFullError
from tierwise.runtime.llama import captured_log

__all__ = ["FILE_TYPES", "ImportanceMatrix", "QuantizationPlan", "plan_quantization", "quantize"]

ImportanceMatrix = Mapping[str, NDArray[np.float32]]
"""Mean squared activation per input channel, by tensor name (the base's layer numbers)."""

_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_PLANNED = re.compile(
    r"\[\s*\d+/\s*\d+\]\s+(\S+)\s+- \[[^\]]*\], type =\s*(\w+), size =[^\n(]*(?:\((\w+)\))?"
)
_FALLBACK = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")
_LAYER = re.compile(r"^blk\.(\d+)\.")
_UNQUANTIZED = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """What quantizing would give, found without writing anything.

    Args:
        bytes: Exact, down to the header.
        fallbacks: Tensors whose width the type cannot store (K- and I-quants take multiples of
            256): llama.cpp gives them a larger type instead.
        types: Of each tensor, by its name in the file that would be written.
    """

    bytes: int
    fallbacks: int
    types: Mapping[str, str]


def plan_quantization(
    source: Path,
    file_type: str,
    *,
    pruned_layers: Sequence[int] = (),
    overrides: Mapping[str, str] | None = None,
    imatrix: ImportanceMatrix | None = None,
) -> QuantizationPlan:
    """The size that a tier would have (llama.cpp's ``dry_run``; about 30 ms).

    Args:
        overrides: As in `quantize`.
        imatrix: llama.cpp gives a few tensors another type where there is one.

    Raises:
        ConfigError: The type is not known, or an override cannot be had.
        BuildError: llama.cpp cannot make that type of this model.
    """
    header = read_header(source)
    names = _new_names(header, pruned_layers)
    wanted = _wanted(header, names, file_type, overrides or {})
    job = _Job(source, source.with_suffix(".unused"), file_type, pruned_layers, wanted, imatrix)
    text = "".join(job.run(dry_run=True))
    types = {name: tensor_type(new or old) for name, old, new in _PLANNED.findall(text)}
    if set(types) != set(names):
        raise BuildError(
            f"llama.cpp did not say what it would make of {str(source)!r}; this version "
            f"(llama-cpp-python {lib.__version__}) writes another log than those known. "
            'pip install "llama-cpp-python<0.4"'
        )
    for name, kind in wanted.items():
        if types[name] != kind:
            raise ConfigError(
                f"{name!r} stays {types[name].name} in llama.cpp, whatever type it is given (here "
                f"{kind.name}); leave it out of the overrides"
            )
    fallbacks = _FALLBACK.search(text)
    return QuantizationPlan(
        bytes=file_bytes(header, types, names),
        fallbacks=int(fallbacks[1]) if fallbacks else 0,
        types={name: kind.name for name, kind in types.items()},
    )


def quantize(
    source: Path,
    target: Path,
    file_type: str,
    *,
    pruned_layers: Sequence[int] = (),
    overrides: Mapping[str, str] | None = None,
    imatrix: ImportanceMatrix | None = None,
    threads: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, int]:
    """Writes ``target`` whole or not at all.

    Args:
        source: A GGUF file; requantizing a quantized one is allowed (and costs quality).
        target: Replaced if it exists.
        file_type: One of `FILE_TYPES`.
        pruned_layers: Layer numbers of ``source`` to leave out.
        overrides: Tensor types by name in ``source``, for tensors that get another one than
            ``file_type`` would give them; those of pruned layers are left out. Tensors that have
            their type already are copied as they are.
        imatrix: Steers rounding towards the channels that matter; tensors it does not name are
            quantized without. Names as in ``source`` too.
        threads: 0 for all cores.
        progress: Called with the tensor's number and the share done in 0..1.

    Returns:
        How many tensors have each GGML type, e.g. ``{"f32": 61, "q8_0": 211}``.

    Raises:
        ConfigError: A type is not known, or a tensor's width does not fit it.
        DiskFullError: There is no room for it.
        BuildError: llama.cpp failed; its reason is given.
    """
    plan = plan_quantization(
        source, file_type, pruned_layers=pruned_layers, overrides=overrides, imatrix=imatrix
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < plan.bytes:
        raise DiskFullError(
            f"{str(target)!r} needs {plan.bytes / 1e6:,.0f} MB and only {free / 1e6:,.0f} MB are "
            "free. Free some space and run the same command again: what is finished is kept."
        )
    header = read_header(source)
    wanted = _wanted(header, _new_names(header, pruned_layers), file_type, overrides or {})
    part = target.with_name(target.name + ".part")
    try:
        job = _Job(source, part, file_type, pruned_layers, wanted, imatrix)
        job.run(threads=threads, progress=progress)
        types = {name: info.kind.name for name, info in read_header(part).tensors.items()}
        written = part.stat().st_size
        if types != plan.types or abs(written - plan.bytes) > 4096:
            wrong = [name for name in plan.types if types.get(name) != plan.types[name]]
            raise BuildError(
                f"llama.cpp wrote {written:,} bytes to {str(target)!r} where {plan.bytes:,} were "
                f"expected ({len(wrong)} tensors of another type, {wrong[:1]}); the file is not "
                "trusted. Run the command again."
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return dict(Counter(name.lower() for name in types.values()))


def _new_names(header: Header, pruned_layers: Sequence[int]) -> dict[str, str]:
    """Of the tensors that stay: their names in the source, by those they will have."""
    found = {int(m[1]) for name in header.tensors if (m := _LAYER.match(name))}
    left = sorted(found - set(pruned_layers))
    numbers = {old: new for new, old in enumerate(left)}
    out = {}
    for name in header.tensors:
        layer = _LAYER.match(name)
        if layer is None:
            out[name] = name
        elif (old := int(layer[1])) in numbers:
            out[f"blk.{numbers[old]}.{name[layer.end() :]}"] = name
    return out


def _wanted(
    header: Header, names: Mapping[str, str], file_type: str, overrides: Mapping[str, str]
) -> dict[str, TensorType]:
    """The overrides by the names that the tensors will have, checked."""
    if overrides and file_type in _UNQUANTIZED:
        raise ConfigError(
            f"llama.cpp ignores the types of single tensors in files of {file_type}; take Q8_0 "
            "for the file, and give all tensors that should stay exact the type F16"
        )
    kinds = {}
    for name, text in overrides.items():
        if name not in header.tensors:
            raise ConfigError(f"the base has no tensor {name!r}, which was to become {text}")
        kind, width = tensor_type(text), header.tensors[name].shape[0]
        if width % kind.block:
            raise ConfigError(
                f"{name!r} cannot become {kind.name}: its rows of {width} values are no multiple "
                f"of {kind.block}. Take {fitting(kind, width).name}."
            )
        kinds[name] = kind
    return {new: kinds[old] for new, old in names.items() if old in kinds}


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of llama.cpp's quantizer."""

    source: Path
    target: Path
    file_type: str
    pruned_layers: Sequence[int]
    wanted: Mapping[str, TensorType]
    imatrix: ImportanceMatrix | None

    def run(
        self,
        *,
        dry_run: bool = False,
        threads: int = 0,
        progress: Callable[[str, float], None] | None = None,
    ) -> list[str]:
        """Returns its log."""
        if self.file_type not in FILE_TYPES:
            raise ConfigError(
                f"unknown quantization {self.file_type!r}; known are {', '.join(FILE_TYPES)}"
            )
        params = lib.llama_model_quantize_default_params()
        params.ftype = FILE_TYPES[self.file_type]
        params.allow_requantize = True
        params.nthread = threads
        params.dry_run = dry_run
        keep: list[Any] = []  # ctypes arrays must outlive the call
        if self.pruned_layers:
            layers = sorted(set(self.pruned_layers))
            keep.append((ctypes.c_int32 * (len(layers) + 1))(*layers, -1))
            params.prune_layers = keep[-1]
        if self.imatrix:
            keep.append(_imatrix_array(self.imatrix, keep))
            params.imatrix = keep[-1]
        if self.wanted:
            keep.append(_override_array(self.wanted))
            params.tt_overrides = keep[-1]

        def on_line(line: str) -> None:
            if progress is not None and (step := _STEP.search(line)):
                progress(f"tensor {step[1]} of {step[2]}", int(step[1]) / int(step[2]))

        with captured_log(on_line) as log:
            code = lib.llama_model_quantize(
                os.fsencode(self.source), os.fsencode(self.target), ctypes.byref(params)
            )
        if code != 0:
            raise self._failure(log)
        return log

    def _failure(self, log: Sequence[str]) -> BuildError:
        reason = next((line for line in log if "failed" in line), "no reason given").strip()
        if "iostream" in reason or "write" in reason:
            return DiskFullError(
                f"{str(self.target)!r} could not be written ({reason}): the disk is full or a "
                "limit was reached. Free some space and run the same command again."
            )
        return BuildError(
            f"llama.cpp could not make {self.file_type} of {str(self.source)!r}: {reason}"
        )


def _override_array(wanted: Mapping[str, TensorType]) -> Any:
    """``llama_model_tensor_override`` entries, one for all layers that give a kind of tensor the
    same type: every pattern is searched for in every name."""
    layers: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, kind in wanted.items():
        layer = _LAYER.match(name)
        rest = name[layer.end() :] if layer else name
        layers[rest, kind.number].append(layer[1] if layer else "")
    entries = (lib.llama_model_tensor_override * (len(layers) + 1))()
    for entry, ((rest, number), found) in zip(entries, layers.items(), strict=False):
        block = rf"blk\.({'|'.join(found)})\." if found[0] else ""
        entry.pattern = f"^{block}{re.escape(rest)}$".encode()
        entry.type = number
    return entries  # the last entry's pattern stays NULL, which ends the array


def _imatrix_array(imatrix: ImportanceMatrix, keep: list[Any]) -> Any:
    entries = (lib.llama_model_imatrix_data * (len(imatrix) + 1))()
    for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
        data = np.ascontiguousarray(values, dtype=np.float32)
        raw = name.encode()
        keep.extend((data, raw))
        entry.name = raw
        entry.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = data.size
    return entries  # the last entry's name stays NULL, which ends the array
