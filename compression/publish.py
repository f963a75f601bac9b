"""What a build leaves behind: tiers, manifest, recipe, report and cards, and no stray files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tierwise import __version__
from tierwise.compression.found_recipe import write_recipe
from tierwise.compression.make import Artifact
from tierwise.compression.report.cards import write_cards
from tierwise.compression.report.tried import Tried
from tierwise.compression.report.write import write_report
from tierwise.compression.stages import Stages
from tierwise.compression.tier_source import TierSource
from tierwise.runtime.errors import FamilyError
from tierwise.runtime.family import MANIFEST, Base, Family, Quality, Tier
from tierwise.runtime.files import link_or_copy
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.llama import Model
from tierwise.runtime.profile import family_profiles

STUDENT = "student"
"""What names of students' files in the build's folder begin with. Those took long and stay."""


def existing_family(out: Path) -> Family | None:
    try:
        return Family.load(out)
    except FamilyError:
        return None


def describe_tier(
    artifact: Artifact, source: TierSource, base: Base, file_type: str, quality: Quality
) -> Tier:
    """The tier's record."""
    candidate, made = artifact.candidate, artifact.record
    with Model(artifact.file, no_alloc=True) as model:
        parameters, layers = model.parameters, model.layers
        kv_bytes = model.kv_bytes_per_token
    quantization = file_type if candidate.quantization == "copy" else candidate.quantization
    return Tier(
        name=candidate.name,
        file=f"{candidate.name}.gguf",
        sha256=made.sha256,
        bytes=made.bytes,
        parameters=parameters,
        layers=layers,
        context_tokens=base.context_tokens,
        kv_bytes_per_token=kv_bytes,
        kv_type=candidate.kv_type,
        demonstration_tokens=source.demonstration_tokens,
        lineage=Lineage(
            origin="built",
            quantization="mixed" if candidate.overrides else quantization,
            pruned_layers=candidate.pruned_layers or source.pruned_layers,
            imatrix_sha256=made.imatrix_sha256,
            tensor_types=made.tensor_types,
            tensor_overrides=dict(candidate.overrides),
            ffn_channels=source.ffn_channels,
            kv_heads=source.kv_heads,
            distillation=source.distillation,
        ),
        quality=quality,
    )


def publish(
    out: Path,
    base: Base,
    tiers: Sequence[tuple[Tier, Path]],
    tried: Sequence[Tried],
    recipe: Mapping[str, object],
    stages: Stages,
) -> Family:
    """Puts the files in their places, then writes the manifest and what tells of it.

    Args:
        tiers: The kept ones and where their files are.
        tried: Every candidate, for the report.
        recipe: As from `found_recipe`.
    """
    before = existing_family(out)
    family = Family(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tierwise=__version__,
        base=base,
        tiers=(
            *(tier for tier, _ in tiers),
            *_adopted(before, base, [tier.name for tier, _ in tiers]),
        ),
        dropped={one.name: one.reason for one in tried if not one.kept},
        remotes=() if before is None else before.remotes,
    )
    (out / MANIFEST).unlink(missing_ok=True)
    for tier, file in tiers:
        place = out / tier.file
        if not (place.exists() and file.samefile(place)):
            link_or_copy(file, place)
    write_recipe(out, base.source, recipe)
    family.save(out)
    # Told of a family that is whole already; a build that is killed here writes them next time.
    profiles = family_profiles(family)
    write_report(family, tried=tried, profiles=profiles)
    write_cards(family, profiles)
    _tidy(out, family, before, stages)
    return family


def _adopted(before: Family | None, base: Base, names: Sequence[str]) -> list[Tier]:
    """Tiers that were adopted into the family that this one replaces; they stay."""
    if before is None or before.base.tokenizer_sha256 != base.tokenizer_sha256:
        return []
    return [t for t in before.tiers if t.lineage.origin == "adopted" and t.name not in names]


def _tidy(out: Path, family: Family, before: Family | None, stages: Stages) -> None:
    """Removes what the build needed on its way, and cards of tiers that are gone."""
    for leftover in stages.folder.iterdir():  # also those of builds that were killed
        if leftover.suffix in (".gguf", ".part", ".f16") and not leftover.name.startswith(STUDENT):
            leftover.unlink()
    names = {tier.name for tier in family.tiers}
    for tier in before.tiers if before is not None else ():
        if tier.name not in names:
            (out / f"{tier.name}.md").unlink(missing_ok=True)
