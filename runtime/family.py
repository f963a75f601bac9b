"""A family of tiers on disk: ``family.json`` and the GGUF files beside it.

The manifest is written last and atomically, so its presence means that the family is
complete. Loading checks every file's place, size and hash before anything is run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tierwise.runtime.errors import (
    ConfigError,
    DamagedTierError,
    FamilyIncompleteError,
    FamilyNotFoundError,
    FamilySchemaError,
    UnsafePathError,
)
from tierwise.runtime.files import FileHashes, write_atomically
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.record import Record
from tierwise.runtime.remote_tier import RemoteTier
from tierwise.runtime.units import first_problem

MANIFEST = "family.json"
SCHEMA_VERSION = 2


class Estimate(Record):
    """A share in 0..1 measured on ``n`` samples, with its 95 % Wilson interval."""

    value: float
    n: int
    low: float
    high: float


class Divergence(Record):
    """How far a tier's next-token distribution is from the base's, on held-out text.

    KL is KL(base ‖ tier) in nats per token; perplexity is exp(mean negative log-likelihood).
    """

    tokens: int
    kl_mean: float
    kl_p999: float
    top1_agreement: Estimate
    perplexity: float
    base_perplexity: float


class SuiteResult(Record):
    """Success on one task suite: overall, by grade of difficulty, and by kind of task."""

    suite: str
    seed: int
    overall: Estimate
    by_grade: dict[str, Estimate]
    by_kind: dict[str, Estimate]


class Sample(Record):
    """One task of the suite as a tier answered it, to be read beside the other tiers' answers."""

    task: str
    prompt: str = Field(description="the latest user message")
    reply: str
    expected: str
    passed: bool


class Quality(Record):
    """What was measured of a tier's quality. ``None`` means not measured (adopted tiers).

    Args:
        divergence: From the base.
        tools: Success on the tool-calling suite.
        kv_q8_0: Of the tier with a KV cache of q8_0 from itself with one of f16.
        samples: A few tasks of the suite, the same ones for every tier of a family.
    """

    divergence: Divergence | None = None
    tools: SuiteResult | None = None
    kv_q8_0: Divergence | None = None
    samples: tuple[Sample, ...] = ()


class Tier(Record):
    """One member of a family."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    file: str = Field(description="path relative to the family's folder, with forward slashes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)
    parameters: int
    layers: int
    context_tokens: int = Field(gt=0)
    kv_bytes_per_token: int = Field(ge=0)
    kv_type: Literal["f16", "q8_0"] = Field(default="f16", description="of keys and values")
    demonstration_tokens: int | None = Field(
        default=None, ge=0, description="of a prompt with tools: those that show how to call them"
    )
    lineage: Lineage
    quality: Quality = Quality()

    @property
    def taught_tools(self) -> bool:
        """Whether it calls tools without being shown how."""
        return self.demonstration_tokens == 0

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or not value or set(value) & set("\\:\0"):
            # Raised as itself: pydantic would fold a ValueError into a schema error.
            raise UnsafePathError(
                f"tier file {value!r} leaves the family's folder; paths must be relative to it. "
                "Do not use this family unless you know who wrote it."
            )
        return value


class Base(Record):
    """The model that a family was made from."""

    name: str
    source: str = Field(description="what was given: a path, a Hugging Face id, bundled:NAME")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    architecture: str
    parameters: int
    layers: int
    context_tokens: int
    vocab_size: int
    licence: str | None = None
    dequantized_from: str | None = Field(
        None, description="the file type, where the base was itself quantized"
    )
    tokenizer_sha256: str
    chat_template_sha256: str | None = None


class Family(Record):
    """A base model and its tiers, in order of cost (cheapest first).

    Args:
        schema_version: Of this file; a newer one is refused.
        created: ISO 8601 time in UTC.
        tierwise: Version that wrote it.
        base: The model that the tiers come from.
        tiers: At least one.
        dropped: Reasons, by tier name, why a candidate was not kept.
        remotes: Tiers on other machines.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    tierwise: str
    base: Base
    tiers: tuple[Tier, ...] = Field(min_length=1)
    dropped: dict[str, str] = Field(default={})
    remotes: tuple[RemoteTier, ...] = ()

    _folder: Path = Path()
    _variants: tuple[Tier, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = self._names
        if len(set(names)) != len(names):
            raise ValueError(f"tier names must differ, got {names}")
        return self

    @property
    def _names(self) -> list[str]:
        return [*(tier.name for tier in self.tiers), *(remote.name for remote in self.remotes)]

    @property
    def folder(self) -> Path:
        """The folder that the family was loaded from or saved to."""
        return self._folder

    def tier(self, name: str) -> Tier:
        """The tier of that name.

        Raises:
            ConfigError: There is none; the message lists those there are.
        """
        for tier in (*self.tiers, *self._variants):
            if tier.name == name:
                return tier
        known = ", ".join(self._names)
        raise ConfigError(f"this family has no tier {name!r}; it has: {known}")

    def member(self, name: str) -> Tier | RemoteTier:
        """The tier or remote tier of that name.

        Raises:
            ConfigError: There is neither; the message lists those there are.
        """
        for remote in self.remotes:
            if remote.name == name:
                return remote
        return self.tier(name)

    def add_variant(self, tier: Tier) -> None:
        """From now on `tier`, `member` and `path` know this one too; ``family.json`` never does.

        Raises:
            ConfigError: The family has another tier of that name.
        """
        if tier.name in self._names:
            raise ConfigError(f"the family has a tier {tier.name!r} already")
        self._variants = (*(one for one in self._variants if one.name != tier.name), tier)

    def path(self, tier: Tier | str) -> Path:
        """Where the tier's GGUF file is."""
        return self.folder / (self.tier(tier) if isinstance(tier, str) else tier).file

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> Family:
        """Reads a family and checks it.

        Args:
            folder: Where ``family.json`` is (the path of the file itself will do too).
            verify: Also compare each tier's sha256. Hashes are remembered by path, size and
                modification time, so that only the first load of a file reads all of it.

        Raises:
            FamilyNotFoundError, FamilySchemaError, UnsafePathError, FamilyIncompleteError,
            DamagedTierError: As their names say, with the file and the cure.
        """
        family = cls.read(folder)
        family._check_files(verify)
        return family

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Family:
        """What ``family.json`` says, whatever has become of the tiers' files.

        Raises:
            FamilyNotFoundError, FamilySchemaError, UnsafePathError: As of `load`.
        """
        root = Path(folder).expanduser()
        if root.name == MANIFEST:
            root = root.parent
        manifest = root / MANIFEST
        if not manifest.is_file():
            raise FamilyNotFoundError(
                f"no family in {str(root)!r}: {MANIFEST} is missing. A build that was interrupted "
                f"has none: run `tierwise build BASE --out {root}` (again) to finish it."
            )
        try:
            text = manifest.read_text(encoding="utf-8")
            _check_version(text, manifest)
            family = cls.model_validate_json(text)
        except (ValidationError, UnicodeDecodeError) as error:
            what = str(error)
            if isinstance(error, ValidationError):
                what = first_problem(error, "its part")
            raise FamilySchemaError(
                f"{str(manifest)!r} is not a valid family: {what}. Rebuild the family, or restore "
                "the file from a copy."
            ) from error
        family._folder = root
        return family

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``family.json`` atomically, after checking that every file is in its place."""
        root = Path(folder)
        self._folder = root
        self._check_files(verify=False)
        path = root / MANIFEST
        write_atomically(path, self.model_dump_json(indent=2) + "\n")
        return path

    def _check_files(self, verify: bool) -> None:
        root = self.folder.resolve()
        hashes = FileHashes.shared()
        for tier in self.tiers:
            path = self.folder / tier.file
            if not path.resolve().is_relative_to(root):
                raise UnsafePathError(
                    f"tier {tier.name!r}: {tier.file!r} leaves {str(root)!r} through a symbolic "
                    "link. Copy the file into the folder instead."
                )
            if not path.is_file():
                raise FamilyIncompleteError(
                    f"tier {tier.name!r}: {str(path)!r} is missing. Restore it, or run "
                    "`tierwise build` again with the same arguments."
                )
            size = path.stat().st_size
            if size != tier.bytes:
                raise FamilyIncompleteError(
                    f"tier {tier.name!r}: {str(path)!r} has {size:,} bytes, the manifest says "
                    f"{tier.bytes:,}. Copy the file again, or rebuild the family."
                )
            if verify and (found := hashes.sha256(path)) != tier.sha256:
                raise DamagedTierError(
                    f"tier {tier.name!r}: {str(path)!r} has sha256 {found[:12]}…, the manifest "
                    f"says {tier.sha256[:12]}…. The file is damaged: copy it again or rebuild it."
                )


def nearest_first(tiers: Sequence[Tier]) -> list[Tier]:
    """From the one nearest to the base by its mean KL; ties, and those never compared, by bytes.

    Args:
        tiers: From fastest to slowest; of two that are alike, the slower comes first.
    """

    def rank(at: int) -> tuple[float, int, int]:
        divergence = tiers[at].quality.divergence
        return math.inf if divergence is None else divergence.kl_mean, -tiers[at].bytes, -at

    return [tiers[at] for at in sorted(range(len(tiers)), key=rank)]


def _check_version(text: str, manifest: Path) -> None:
    """Refuses a newer schema before its unknown fields give a confusing error."""

    class Version(BaseModel):
        schema_version: int

    version = Version.model_validate_json(text).schema_version
    if version > SCHEMA_VERSION:
        raise FamilySchemaError(
            f"{str(manifest)!r} has schema version {version}; this Tierwise reads up to "
            f"{SCHEMA_VERSION}. Upgrade: pip install -U tierwise."
        )
