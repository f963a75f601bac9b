"""Tensors on disk: safetensors files that are whole or not there, and whose hash is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tierwise.runtime.files import disk_full_named


def save_tensors(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Writes them with a header of texts, whole or not at all.

    Raises:
        DiskFullError: There is no room; the file before it is kept.
    """
    from safetensors.torch import save

    arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(arrays, {**header, "sha256": _hash(arrays)})
    part = file.with_name(file.name + ".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with disk_full_named(file), part.open("wb") as opened:
            opened.write(data)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `save_tensors` wrote; None where there is nothing, or something damaged."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            header = dict(opened.metadata() or {})
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        return None
    return (arrays, header) if header.pop("sha256", None) == _hash(arrays) else None


def _hash(arrays: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + b"\0")
        digest.update(arrays[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
