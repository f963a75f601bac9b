"""Cheaper variants of a family's tiers, made on this machine while the family serves.

They are in the family's folder ``variants/``, and ``family.json`` never names them. Each is a GGUF
file and a record, both called by what the file is made of: the tier's sha256 and the recipe. The
record is written last and atomically, so its presence means that the file is complete. Records
are believed no more than a manifest is: file names are not taken from them, and every file is
held against its hash before it is used.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from tierwise.runtime.errors import FamilyError
from tierwise.runtime.family import Divergence, Family, Tier
from tierwise.runtime.files import FileHashes, write_atomically
from tierwise.runtime.record import Record

log = logging.getLogger("tierwise.variants")

FOLDER = "variants"
SCHEMA_VERSION = 1


class VariantRecipe(Record):
    """What becomes of a tier.

    Args:
        quantization: llama.cpp file type, e.g. "Q4_0".
        pruned_layers: Numbers of the tier's layers that go.
    """

    quantization: str
    pruned_layers: tuple[int, ...] = ()

    def key(self, parent_sha256: str) -> str:
        """16 hex digits that stand for a file made of that tier by this recipe."""
        text = f"{SCHEMA_VERSION} {parent_sha256} {self.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Variant(Record):
    """A tier that was made of another one.

    Args:
        schema_version: Of this record.
        parent_sha256: Of the file that it was made of.
        recipe: How.
        tier: As a router uses it.
        divergence: Of it from the tier that it was made of, on held-out text.
        dropped: Why it is of no use, in English: its file is gone, and it is not made again. ""
            for one that is of use.
    """

    schema_version: int = SCHEMA_VERSION
    parent_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    recipe: VariantRecipe
    tier: Tier
    divergence: Divergence
    dropped: str = ""

    @property
    def key(self) -> str:
        return self.recipe.key(self.parent_sha256)


class Wanted(Record):
    """A cheaper variant that memory asks for.

    Args:
        folder: Of the family.
        parent: The tier that does not fit.
        context_tokens: That a pool will give it.
        most_bytes: What it may take, context included.
        threads: That it will run with.
    """

    folder: str
    parent: Tier
    context_tokens: int = Field(gt=0)
    most_bytes: int
    threads: int = Field(gt=0)


class VariantStore:
    """The variants of one family on disk.

    Args:
        family: Theirs.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self.folder = family.folder / FOLDER

    def file(self, key: str) -> Path:
        """Where a variant's GGUF file belongs."""
        return self.folder / f"{key}.gguf"

    def usable(self) -> Iterator[Variant]:
        """All that are of use, made of tiers that the family still has, and undamaged."""
        parents = {tier.sha256 for tier in self._family.tiers}
        for record in sorted(self.folder.glob("*.json")):
            variant = self.find(record.stem)
            if variant is not None and not variant.dropped and variant.parent_sha256 in parents:
                yield variant

    def find(self, key: str) -> Variant | None:
        """The variant of that key, dropped ones included; None where there is none to be used.

        A record that is not what its name says, and one whose file is damaged, goes with the
        file, so that both are made anew when they are wanted.
        """
        try:
            variant = Variant.model_validate_json(self._record(key).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, UnicodeDecodeError, FamilyError) as error:
            wrong = f"its record cannot be read ({error})"
        else:
            wrong = self._wrong(key, variant)
            if not wrong:
                return variant
        log.warning("variant %s is not used: %s", self.file(key), wrong)
        if not self._inside(self.folder):
            return None
        try:
            self._record(key).unlink(missing_ok=True)
            self.file(key).unlink(missing_ok=True)
        except OSError as error:
            log.warning("variant %s cannot be removed: %s", self.file(key), error)
        return None

    def save(self, variant: Variant) -> None:
        """Writes the record; the file must be in its place.

        Raises:
            DiskFullError: There is no room for it.
        """
        write_atomically(self._record(variant.key), variant.model_dump_json(indent=2) + "\n")

    def drop(self, variant: Variant, why: str) -> None:
        """Removes a variant's file and takes note, so that it is not made again.

        Raises:
            DiskFullError: There is no room for the note.
        """
        self.save(variant.model_copy(update={"dropped": why}))
        self.file(variant.key).unlink(missing_ok=True)

    def _record(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _wrong(self, key: str, variant: Variant) -> str:
        """Why a variant cannot be used; "" if it can."""
        if variant.key != key or variant.tier.file != f"{FOLDER}/{key}.gguf":
            return "its record is that of another file"
        if variant.dropped:
            return ""
        path = self.file(key)
        if not self._inside(path):
            return "it leaves the family's folder through a symbolic link"
        if not path.is_file():
            return "its file is missing"
        if path.stat().st_size != variant.tier.bytes or (
            FileHashes.shared().sha256(path) != variant.tier.sha256
        ):
            return "its file is damaged: the hash is not that of its record"
        return ""

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._family.folder.resolve())
