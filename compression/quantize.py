"""GGUF to GGUF through llama.cpp's own quantizer: types, layer pruning, exact sizes.

Source: ``llama_model_quantize`` (llama.cpp, ``src/llama-quant.cpp``).
"""

from __future__ import annotations

import ctypes
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from tierwise.runtime.errors import BuildError, ConfigError, DiskFullError
from tierwise.runtime.llama import captured_log

ImportanceMatrix = Mapping[str, NDArray[np.float32]]
"""Mean squared activation per input channel, by tensor name (the base's layer numbers)."""

FILE_TYPES: dict[str, int] = {
    name: getattr(lib, f"LLAMA_FTYPE_MOSTLY_{name}")
    for name in (
        *("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
        *("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"),
        *("Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_S"),
    )
}
"""llama.cpp's file types that a tier can have, best first."""

_SIZE = re.compile(r"(model|quant) size\s*=\s*([\d.]+) MiB")
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_TENSOR = re.compile(r"\[\s*\d+/\s*\d+\].*?type =\s*(\w+),(?: converting to (\w+))?")
_FALLBACK = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """What quantizing would give, found without writing anything.

    ``bytes`` is exact to a few kilobytes: llama.cpp reports the tensors' size to 0.01 MiB, and
    the header is the source's plus a handful of keys.
    """

    bytes: int
    fallbacks: int
    """Tensors whose width is no multiple of 256, which K- and I-quants cannot store: llama.cpp
    gives them a larger type instead."""


def plan_quantization(
    source: Path, file_type: str, *, pruned_layers: Sequence[int] = ()
) -> QuantizationPlan:
    """The size that a tier would have (llama.cpp's ``dry_run``; about 30 ms).

    Raises:
        BuildError: llama.cpp cannot make that type of this model.
    """
    log = _run(source, source.with_suffix(".unused"), file_type, pruned_layers, dry_run=True)
    sizes = {kind: float(mib) * _MIB for kind, mib in _SIZE.findall("".join(log))}
    header = source.stat().st_size - _tensor_bytes(source)
    fallbacks = _FALLBACK.search("".join(log))
    return QuantizationPlan(
        bytes=int(sizes["quant"]) + header, fallbacks=int(fallbacks[1]) if fallbacks else 0
    )


def _tensor_bytes(source: Path) -> int:
    """Bytes of the source's tensors, as llama.cpp counts them (all layers)."""
    log = _run(source, source.with_suffix(".unused"), "F16", (), dry_run=True)
    return int({k: float(v) * _MIB for k, v in _SIZE.findall("".join(log))}["model"])


def quantize(
    source: Path,
    target: Path,
    file_type: str,
    *,
    pruned_layers: Sequence[int] = (),
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
        imatrix: Steers rounding towards the channels that matter; tensors it does not name are
            quantized without.
        threads: 0 for all cores.
        progress: Called with the tensor's number and the share done in 0..1.

    Returns:
        How many tensors have each GGML type, e.g. ``{"f32": 61, "q8_0": 211}``.

    Raises:
        DiskFullError: There is no room for it.
        BuildError: llama.cpp failed; its reason is given.
    """
    expected = plan_quantization(source, file_type, pruned_layers=pruned_layers).bytes
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < expected:
        raise DiskFullError(
            f"{str(target)!r} needs {expected / 1e6:,.0f} MB and only {free / 1e6:,.0f} MB are "
            "free. Free some space and run the same command again: what is finished is kept."
        )
    part = target.with_name(target.name + ".part")
    try:
        log = _run(
            source,
            part,
            file_type,
            pruned_layers,
            imatrix=imatrix,
            threads=threads,
            progress=progress,
        )
        written = part.stat().st_size
        if abs(written - expected) > max(64 * 1024, expected // 100):
            raise BuildError(
                f"llama.cpp wrote {written:,} bytes to {str(target)!r} where {expected:,} were "
                "expected; the file is not trusted. Run the command again."
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return dict(Counter(new or old for old, new in _TENSOR.findall("".join(log))))


def _run(
    source: Path,
    target: Path,
    file_type: str,
    pruned_layers: Sequence[int],
    *,
    dry_run: bool = False,
    imatrix: ImportanceMatrix | None = None,
    threads: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> list[str]:
    """One call of llama.cpp's quantizer; returns its log."""
    if file_type not in FILE_TYPES:
        raise ConfigError(f"unknown quantization {file_type!r}; known are {', '.join(FILE_TYPES)}")
    params = lib.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.allow_requantize = True
    params.nthread = threads
    params.dry_run = dry_run
    keep: list[Any] = []  # ctypes arrays must outlive the call
    if pruned_layers:
        layers = sorted(set(pruned_layers))
        keep.append((ctypes.c_int32 * (len(layers) + 1))(*layers, -1))
        params.prune_layers = keep[-1]
    if imatrix:
        keep.append(_imatrix_array(imatrix, keep))
        params.imatrix = keep[-1]

    def on_line(line: str) -> None:
        if progress is not None and (step := _STEP.search(line)):
            progress(f"tensor {step[1]} of {step[2]}", int(step[1]) / int(step[2]))

    with captured_log(on_line) as log:
        code = lib.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(params)
        )
    if code != 0:
        reason = next((line for line in log if "failed" in line), "no reason given").strip()
        if "iostream" in reason or "write" in reason:
            raise DiskFullError(
                f"{str(target)!r} could not be written ({reason}): the disk is full or a limit "
                "was reached. Free some space and run the same command again."
            )
        raise BuildError(f"llama.cpp could not make {file_type} of {str(source)!r}: {reason}")
    return log


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
