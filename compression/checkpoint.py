"""What is in a model's folder: config.json, *.safetensors, README.md. Runs none of its code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tierwise.runtime.errors import (
    ConfigError,
    DamagedModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from tierwise.runtime.files import disk_full_named

FORMS = (
    "a GGUF file (./model.gguf), a transformers folder (./model), a bundled model "
    "(bundled:smollm2), or a Hugging Face id (org/name, org/name@revision, org/name:file.gguf)"
)
"""The four ways to name a base, for messages and for the command line's help."""

# Everything that `export_gguf` reads, and no pickle or code.
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "README.md")


def read_json(path: Path) -> dict[str, Any]:
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


def choose_file(files: Sequence[str], where: str, how: str) -> str | None:
    """The one GGUF file to take, or ``None`` for the transformers checkpoint.

    Args:
        files: Names relative to the folder, with forward slashes.
        where: The folder or repository, for messages.
        how: How to name one of its files, with ``{}`` for the file.
    """
    weights = [name for name in files if name.endswith(".safetensors")]
    if "config.json" in files and any(not name.startswith("adapter_") for name in weights):
        return None
    ggufs = sorted(name for name in files if name.endswith(".gguf"))
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        listing = "\n  ".join(how.format(name) for name in ggufs)
        raise ConfigError(f"{where} has {len(ggufs)} GGUF files; name one of them:\n  {listing}")
    if "adapter_config.json" in files:
        raise UnsupportedModelError(
            f"{where} is a LoRA adapter, not a whole model. Merge it into its base (peft's "
            "merge_and_unload, then save_pretrained) and give that folder."
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in files):
        raise UnsupportedModelError(
            f"{where} has its weights as pickle files (pytorch_model.bin) only, which can run "
            "code when read. Convert them with transformers on a machine you can spare: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder) writes safetensors."
        )
    raise ModelNotFoundError(
        f"{where} holds no model: a base needs a .gguf file, or config.json with *.safetensors."
    )


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


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the checkpoint: where it is and its shape, outermost first."""

    file: Path
    key: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.shape[0]


def find_weights(checkpoint: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by its transformers name."""
    index = checkpoint / "model.safetensors.index.json"
    single = checkpoint / "model.safetensors"
    if index.is_file():
        files = sorted(set(read_json(index).get("weight_map", {}).values()))
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
    found: dict[str, StoredTensor] = {}
    for path in paths:
        with opened_weights(path) as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                found[key] = StoredTensor(path, key, tuple(file.get_slice(key).get_shape()))
    return found


@contextmanager
def opened_weights(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise DamagedModelError(
            f"{str(path)!r} is not a whole safetensors file ({error}). Download it again."
        ) from error


def save_weights(tensors: Mapping[str, Any], path: Path) -> None:
    """Writes torch tensors as one safetensors file.

    Raises:
        DiskFullError: There is no room for it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with disk_full_named(path):
        try:
            save_file(dict(tensors), path, metadata={"format": "pt"})
        except SafetensorError as error:
            # It is written in Rust, which keeps the number of the error in its text only.
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), str(error)) from error
