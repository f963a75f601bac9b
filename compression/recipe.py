"""What a build should make: one dial (`tiers`), and everything behind it open to pinning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tierwise.compression.quantize import FILE_TYPES
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.units import Bytes, first_problem


class TierRecipe(BaseModel):
    """One tier, pinned.

    Args:
        name: Of the tier; derived from the rest where empty.
        quantization: llama.cpp file type, or "copy" for the base as it is.
        prune: Share of the layers to leave out (0..0.5, chosen by block influence), or their
            numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantization: str
    name: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    prune: Annotated[float, Field(ge=0, le=0.5)] | tuple[int, ...] = 0.0

    @field_validator("quantization")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "copy" and value.upper() not in FILE_TYPES:
            raise ValueError(
                f"unknown quantization {value!r}; known: copy, {', '.join(FILE_TYPES)}"
            )
        return value if value == "copy" else value.upper()


class BuildConfig(BaseModel):
    """How to build a family. The defaults suit a laptop.

    Args:
        tiers: How many to keep at most.
        max_bytes: Largest file allowed; a number or a text such as "2GiB".
        candidates: Tiers to make, instead of the planned ones. Those that are dominated are
            still dropped, unless `keep_all`.
        keep_all: Keep what was made even if another tier beats it.
        imatrix: Quantize with an importance matrix.
        calibration_tokens: Read for importance matrix and block influence.
        held_out_tokens: Text on which divergence is measured.
        suite_tasks: Tasks on which each kept tier's success is measured.
        min_top1: Tiers that agree less often with the base's likeliest token are dropped.
        seed: Of calibration text, held-out text and suite.
        threads: For llama.cpp; None for all the cores that this process may use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiers: int = Field(default=3, ge=1, le=12)
    max_bytes: Bytes | None = None
    candidates: tuple[TierRecipe, ...] = ()
    keep_all: bool = False
    imatrix: bool = True
    calibration_tokens: int = Field(default=12_000, ge=256)
    held_out_tokens: int = Field(default=3_072, ge=64)
    suite_tasks: int = Field(default=48, ge=4)
    min_top1: float = Field(default=0.6, ge=0, le=1)
    seed: int = 0
    threads: int | None = Field(default=None, ge=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **overrides: Any) -> BuildConfig:
        """Reads a recipe file (YAML). ``overrides`` that are not None win over it.

        Raises:
            ConfigError: The file is missing, is not YAML, or says something that makes no sense.
        """
        file = Path(path)
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"there is no recipe file {str(file)!r}") from error
        except OSError as error:
            raise ConfigError(f"recipe {str(file)!r} cannot be read: {error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe {str(file)!r} is not valid YAML: {error}") from error
        data = {} if data is None else data
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise ConfigError(
                f"recipe {str(file)!r} must be a mapping such as `tiers: 3`, not {data!r}"
            )
        return cls.make(**(data | {k: v for k, v in overrides.items() if v is not None}))

    @classmethod
    def make(cls, **values: Any) -> BuildConfig:
        """The config of these values; ConfigError where pydantic would raise its own."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(first_problem(error, "build option")) from error
