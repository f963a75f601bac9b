"""A tier's file gives way to a better one under the same name, and comes back if it is wanted.

The new file lies beside the old one until the manifest, written in one step, names it: whoever
reads the family sees the one or the other whole. The old file stays where it is, for `undo_swap`
and for processes that opened the family before.
"""

from __future__ import annotations

import os
from pathlib import Path

from tierwise.compression.measure import measure_drafts
from tierwise.compression.report.cards import write_cards
from tierwise.compression.reporting import Reporter, Silent
from tierwise.compression.stages import Stages
from tierwise.runtime.drafting import PROMPT_LOOKUP
from tierwise.runtime.errors import BuildError, ConfigError
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.files import link_or_copy
from tierwise.runtime.profile import family_profiles, load_profile, save_profile

WORK = ".learn"
"""In the family's folder. Without it the family works all the same, and no swap is undone."""

_BEFORE = "before"


def swap_tier(
    folder: str | os.PathLike[str],
    old: Tier,
    new: Tier,
    file: Path,
    *,
    reporter: Reporter | None = None,
) -> Family:
    """Puts a tier's new file in place of its old one. If anything fails, nothing changes.

    Args:
        folder: Of the family, which is read anew: whatever else was changed meanwhile stays.
        old: The tier as it was when the work on the new one began.
        new: Its record with another file, of the same shape, sha256, bytes and lineage; its
            place is given here.
        file: The new file, anywhere.

    Returns:
        The family as saved.

    Raises:
        BuildError: The tier was changed meanwhile.
        FamilyError: The family is not usable any more.
        DiskFullError: There is no room for a copy of the file.
    """
    family = Family.load(folder)
    current = next((tier for tier in family.tiers if tier.name == old.name), None)
    if current is None or current.sha256 != old.sha256:
        now = "gone" if current is None else f"{current.sha256[:12]}…"
        raise BuildError(
            f"tier {old.name!r} of {str(family.folder)!r} was changed while it was worked on: its "
            f"file was {old.sha256[:12]}… and is {now}. Nothing was put in its place; run the "
            "same command again, and it begins with the tier as it is now."
        )
    place = family.folder / f"{old.name}-{new.sha256[:8]}.gguf"
    Stages(family.folder / WORK).save(_BEFORE, new.sha256[:16], current)
    new = new.model_copy(update={"file": place.name})
    there = place.exists()
    link_or_copy(file, place)
    try:
        changed = _with(family, new)
        changed.save(family.folder)
    except BaseException:
        if not there:
            place.unlink(missing_ok=True)
        raise
    return after_swap(changed, new, current, reporter=reporter)


def after_swap(family: Family, new: Tier, old: Tier, *, reporter: Reporter | None = None) -> Family:
    """Speed and model cards of a family whose tier was swapped. May be repeated.

    Files of the same shape and types are equally fast: the profile is that of the old one, save
    for what drafts by other tiers gain, which is measured anew.
    """
    profile = load_profile(old.sha256)
    if profile is not None and load_profile(new.sha256) is None:
        own = {by: gain for by, gain in profile.drafting.items() if by == PROMPT_LOOKUP}
        save_profile(profile.model_copy(update={"tier_sha256": new.sha256, "drafting": own}))
    files = {tier.name: family.path(tier) for tier in family.tiers}
    measure_drafts(files, reporter=reporter or Silent())
    write_cards(family, family_profiles(family))
    return family


def before_swap(family: Family, tier: Tier) -> Tier | None:
    """What the tier was before its latest swap; None if it was not swapped, or nobody knows."""
    work = family.folder / WORK
    return Stages(work).load(_BEFORE, tier.sha256[:16], Tier) if work.is_dir() else None


def undo_swap(folder: str | os.PathLike[str], name: str | None = None) -> tuple[Family, Tier]:
    """Puts the file that a tier had before its latest swap in its place again.

    Args:
        folder: Of the family.
        name: Of the tier; not needed where one alone was swapped.

    Returns:
        The family as saved, and the tier as it is again.

    Raises:
        ConfigError: No tier of the family was swapped, or not this one, or several were.
        FamilyIncompleteError: The old file is gone.
        FamilyError: The family is not usable.
    """
    family = Family.load(folder)
    known = {
        tier.name: (tier, before)
        for tier in family.tiers
        if (before := before_swap(family, tier)) is not None
    }
    if name is not None:
        family.tier(name)
    names = list(known) if name is None else [name]
    if len(names) != 1 or names[0] not in known:
        raise ConfigError(
            f"which tier is to be as it was before: {', '.join(names)}? Name one with --tier"
            if len(names) > 1
            else f"{str(family.folder)!r} keeps nothing that "
            f"{'a tier' if name is None else f'tier {name!r}'} was before"
        )
    now, before = known[names[0]]
    changed = _with(family, before)
    changed.save(family.folder)
    family.path(now).unlink(missing_ok=True)
    Stages(family.folder / WORK).file(_BEFORE, now.sha256[:16], ".json").unlink(missing_ok=True)
    write_cards(changed, family_profiles(changed))
    return changed, before


def _with(family: Family, tier: Tier) -> Family:
    """With this tier in place of the one of its name."""
    tiers = tuple(tier if one.name == tier.name else one for one in family.tiers)
    return family.model_copy(update={"tiers": tiers})
