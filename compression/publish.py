"""What a build leaves behind: tiers, manifest, recipe, report and cards, and no stray files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tierwise import __version__
from tierwise.compression.adopt import rank
from tierwise.compression.found_recipe import write_recipe
from tierwise.compression.make import Artifact, tier_places
from tierwise.compression.report.cards import write_cards
from tierwise.compression.report.tried import Tried
from tierwise.compression.report.write import write_report
from tierwise.compression.stages import Stages
from tierwise.compression.tier_source import TierSource
from tierwise.runtime.errors import ConfigError, FamilyError
from tierwise.runtime.family import Base, Family, Quality, Tier
from tierwise.runtime.files import FileHashes, link_or_copy
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.llama import Model
from tierwise.runtime.profile import family_profiles
from tierwise.runtime.record import Record

_PLACED = ("placed", "last")

STUDENT = "student"
"""What names of students' files in the build's folder begin with. Those took long and stay."""


class _Placed(Record):
    """Files of tiers that a build put in the family's folder or found there, till all is tidy."""

    files: frozenset[str] = frozenset()


def known_family(out: Path) -> Family | None:
    """What the folder's manifest says, be its tiers' files whole or not; None if it is no use."""
    try:
        return Family.read(out)
    except FamilyError:
        return None


def check_names(before: Family | None, names: Iterable[str]) -> None:
    """Tiers to be must not be called like the family's remote ones, which stay.

    Raises:
        ConfigError: One is.
    """
    remotes = {remote.name for remote in (before.remotes if before is not None else ())}
    if clash := sorted(remotes.intersection(names)):
        raise ConfigError(
            f"the build makes a tier {clash[0]!r}, and the family has a remote tier of that name. "
            "Run `tierwise disconnect` and connect it under another name, or name the tier in a "
            "recipe."
        )


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
        file=f"{candidate.name}.gguf",  # unless another is there when it is published
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

    The family that was there stays whole until the manifest, written in one step, names other
    files; then those that it alone had are removed. Its adopted tiers and its remotes stay.

    Args:
        tiers: The kept ones and where their files are.
        tried: Every candidate, for the report.
        recipe: As from `found_recipe`.

    Raises:
        ConfigError: A remote tier has one of the names.
        DiskFullError: There is no room; the old family is untouched.
    """
    before = known_family(out)
    check_names(before, [tier.name for tier, _ in tiers])
    dropped = {one.name: one.reason for one in tried if not one.kept}
    members = [_placed(tier, file, out, before) for tier, file in tiers]
    old = () if before is None else before.tiers
    own = [t.file for t in (*old, *members) if t.lineage.origin != "adopted"]
    left = stages.load(*_PLACED, _Placed) or _Placed()  # by a build that was killed
    stages.save(*_PLACED, _Placed(files=left.files.union(own)))
    for member, (_, file) in zip(members, tiers, strict=True):
        place = out / member.file
        if not (place.exists() and file.samefile(place)):
            link_or_copy(file, place)
    before = known_family(out)  # copying takes its time: what was added meanwhile stays
    check_names(before, [tier.name for tier in members])
    for tier in _adopted(before, base, [tier.name for tier in members], dropped):
        members.insert(rank(members, tier), tier)
    family = Family(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tierwise=__version__,
        base=base,
        tiers=tuple(members),
        dropped=dropped,
        remotes=() if before is None else before.remotes,
    )
    family.save(out)
    # Told of a family that is whole already; a build that is killed here writes them next time.
    write_recipe(out, base.source, recipe)
    profiles = family_profiles(family)
    write_report(family, tried=tried, profiles=profiles)
    write_cards(family, profiles)
    _tidy(out, family, before, stages)
    return family


def _placed(tier: Tier, file: Path, out: Path, before: Family | None) -> Tier:
    """The tier with a place that takes none from another file."""
    plain, own = tier_places(out, tier.name, tier.sha256)
    if file in (plain, own):
        return tier.model_copy(update={"file": file.name})
    known = {} if before is None else {one.file: one.sha256 for one in before.tiers}
    there = known.get(plain.name)  # what it should be: a damaged one is replaced by itself
    if there is None and plain.is_file():
        there = FileHashes.shared().sha256(plain)
    return tier.model_copy(update={"file": (plain if there in (None, tier.sha256) else own).name})


def _adopted(
    before: Family | None, base: Base, names: Sequence[str], dropped: dict[str, str]
) -> list[Tier]:
    """Tiers that were adopted into the family that this one replaces; they stay if they can."""
    found = []
    for tier in () if before is None else before.tiers:
        if tier.lineage.origin != "adopted" or before is None or tier.name in names:
            continue
        file = before.path(tier)
        if before.base.tokenizer_sha256 != base.tokenizer_sha256:
            dropped[tier.name] = "adopted; the new base has another tokenizer"
        elif not file.is_file() or FileHashes.shared().sha256(file) != tier.sha256:
            dropped[tier.name] = f"adopted; its file {tier.file!r} is gone or damaged"
        else:
            found.append(tier)
            dropped.pop(tier.name, None)
    return found


def _tidy(out: Path, family: Family, before: Family | None, stages: Stages) -> None:
    """Removes what the build needed on its way, and cards of tiers that are gone."""
    for leftover in stages.folder.iterdir():  # also those of builds that were killed
        if leftover.suffix in (".gguf", ".part", ".f16") and not leftover.name.startswith(STUDENT):
            leftover.unlink()
    used = {tier.file for tier in family.tiers}
    placed = stages.load(*_PLACED, _Placed) or _Placed()
    for name in placed.files - used:
        if (out / name).resolve().is_relative_to(out.resolve()):
            (out / name).unlink(missing_ok=True)
    stages.file(*_PLACED, ".json").unlink(missing_ok=True)
    names = {tier.name for tier in family.tiers}
    for tier in before.tiers if before is not None else ():
        if tier.name not in names:
            (out / f"{tier.name}.md").unlink(missing_ok=True)
