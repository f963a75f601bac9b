"""What a build should make: one dial (`tiers`), and everything behind it open to pinning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tierwise.compression.distillation.config import DistillConfig
from tierwise.compression.quantize import FILE_TYPES
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.units import Bytes, first_problem

Effort = Literal["quick", "normal", "thorough"]

EFFORTS: dict[str, dict[str, int]] = {
    "quick": {
        "calibration_tokens": 1_024,
        "screen_tokens": 512,
        "held_out_tokens": 512,
        "suite_tasks": 12,
        "suite_menu": 6,
        "kv_tokens": 0,
        "speed_runs": 1,
    },
    "normal": {
        "calibration_tokens": 1_024,
        "screen_tokens": 1_024,
        "held_out_tokens": 1_024,
        "suite_tasks": 16,
        "suite_menu": 6,
        "kv_tokens": 256,
        "speed_runs": 1,
    },
    "thorough": {
        "calibration_tokens": 12_288,
        "screen_tokens": 1_024,
        "held_out_tokens": 8_192,
        "suite_tasks": 96,
        "suite_menu": 1,
        "kv_tokens": 2_048,
        "speed_runs": 3,
    },
}
"""What each effort measures on, where the config does not say otherwise."""


class TierRecipe(BaseModel):
    """One tier, pinned.

    Args:
        name: Of the tier; derived from the rest where empty.
        source: The student that it is made of, such as "d26"; the base where empty.
        quantization: llama.cpp file type, or "copy" for the base as it is.
        prune: Share of the layers to leave out (0..0.5, chosen by block influence), or their
            numbers. Students are pruned already.
        overrides: Tensor types by name in the source, where they are not what the file type
            would give.
        kv_type: Of the tier's keys and values when it runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantization: str
    name: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    source: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    prune: Annotated[float, Field(ge=0, le=0.5)] | tuple[int, ...] = 0.0
    overrides: dict[str, str] = {}
    kv_type: Literal["f16", "q8_0"] = "f16"

    @field_validator("quantization")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "copy" and value.upper() not in FILE_TYPES:
            raise ValueError(
                f"unknown quantization {value!r}; known: copy, {', '.join(FILE_TYPES)}"
            )
        return value if value == "copy" else value.upper()

    @field_validator("overrides")
    @classmethod
    def _upper(cls, value: dict[str, str]) -> dict[str, str]:
        return {name: kind.upper() for name, kind in value.items()}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.quantization == "copy" and (self.overrides or self.source):
            raise ValueError("'copy' is the base as it is; name a type for anything else")
        if self.source and self.prune:
            raise ValueError("a student is pruned before it is taught; pin that under 'distill'")
        return self


class BuildConfig(BaseModel):
    """How to build a family. The defaults suit a laptop.

    Args:
        tiers: How many to keep at most: 3, and with distillation 5.
        max_bytes: Largest file allowed; a number or a text such as "2GiB".
        effort: How much is measured: "quick" and "normal" take a minute or two for 135 M
            parameters on two cores, "thorough" several (and is the default with distillation,
            which takes longer by far). Sets the figures of `EFFORTS`; each can be given by
            itself.
        distill: Prune students and teach them; None for none.
        mixed: Search a type for every tensor, and offer such mixes between the stock types. By
            default where the effort is thorough.
        candidates: Tiers to make, instead of the planned ones. Those that are dominated are
            still dropped, unless `keep_all`.
        keep_all: Keep what was made even if another tier beats it.
        imatrix: Quantize with an importance matrix.
        calibration_tokens: Read for importance matrix and block influence.
        screen_tokens: Of held-out text, by which candidates are compared.
        held_out_tokens: Text on which the kept tiers' divergence is measured.
        suite_tasks: Tasks on which each kept tier's success is measured.
        suite_menu: Tasks in a row that share system message and tools (`generate_tasks`), which
            takes a third of the time; 1 for the whole variety.
        kv_tokens: Of held-out text, for what a KV cache of q8_0 does to each tier; 0 for not
            measured.
        speed_runs: Of which each speed is the median.
        min_top1: Tiers that agree less often with the base's likeliest token are dropped, if
            they were not distilled.
        min_tools: Distilled tiers whose success on the suite is less than this share of the best
            tier's are dropped. Their tokens differ more often than those of any quantized tier,
            which says little of their tool calls (and good agreement says little either).
        seed: Of calibration text, held-out text and suite.
        threads: For llama.cpp; None for all the cores that this process may use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiers: int = Field(default=3, ge=1, le=12)
    max_bytes: Bytes | None = None
    effort: Effort = "normal"
    distill: DistillConfig | None = None
    mixed: bool = False
    candidates: tuple[TierRecipe, ...] = ()
    keep_all: bool = False
    imatrix: bool = True
    calibration_tokens: int = Field(default=1_024, ge=256)
    screen_tokens: int = Field(default=1_024, ge=64)
    held_out_tokens: int = Field(default=1_024, ge=64)
    suite_tasks: int = Field(default=16, ge=4)
    suite_menu: int = Field(default=6, ge=1)
    kv_tokens: int = Field(default=256, ge=0)
    speed_runs: int = Field(default=1, ge=1)
    min_top1: float = Field(default=0.6, ge=0, le=1)
    min_tools: float = Field(default=0.6, ge=0, le=1)
    seed: int = 0
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _by_effort(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        distilled = "distill" in given
        effort = given.setdefault("effort", "thorough" if distilled else "normal")
        given.setdefault("mixed", effort == "thorough")
        if distilled:
            given.setdefault("tiers", 5)
        # An effort that is not known is refused by its own field.
        figures = EFFORTS.get(effort, {}) if isinstance(effort, str) else {}
        return {**figures, **given}

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
        given = {name: value for name, value in overrides.items() if value is not None}
        for name, value in given.items():  # a part of a mapping leaves the rest of it
            if isinstance(value, dict) and isinstance(data.get(name), dict):
                given[name] = {**data[name], **value}
        return cls.make(**(data | given))

    @classmethod
    def make(cls, **values: Any) -> BuildConfig:
        """The config of these values; ConfigError where pydantic would raise its own."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(first_problem(error, "build option")) from error
