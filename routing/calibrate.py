"""Asks a family's tiers, learns from what they answer, and keeps it with the family."""

from __future__ import annotations

from collections.abc import Sequence

from tierwise.evaluation.collect import Progress, collect_outcomes
from tierwise.evaluation.outcomes import OUTCOMES, OutcomeStore
from tierwise.evaluation.suites import Suite
from tierwise.routing.calibration import Calibration, fit_calibration
from tierwise.routing.calibration_store import save_calibration
from tierwise.routing.labelled import labelled
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import family_profiles


def calibrate_family(
    family: Family,
    suites: Sequence[Suite],
    *,
    minutes: float | None = None,
    floor: float = 0.9,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Calibration, int]:
    """Asks what is not known yet, then learns from all that is.

    Args:
        family: Its tiers that have files are asked.
        suites: What to ask. Outcomes of other suites, from earlier runs, count as well.
        minutes: For asking; None for as long as it takes.
        floor: Share of the best tier's quality that routing is to keep.
        seed: Of splits and draws.
        threads: For llama.cpp.

    Returns:
        What was learned, kept in the family's folder, and how many prompts were left unasked.

    Raises:
        CalibrationError: Not one call was answered by every tier, or the file of outcomes is
            damaged.
        DiskFullError: There is no room; what was asked is kept.
        ModelError: A tier cannot be loaded.
    """
    tiers = [tier for tier in family.tiers if tier.file]
    with OutcomeStore(family.folder / OUTCOMES) as store:
        with Pool(family, threads=threads) as pool:
            unasked = collect_outcomes(
                family, suites, store, pool=pool, minutes=minutes, progress=progress
            )
        data = labelled(store, tiers, family_profiles(family))
    found = fit_calibration(data, family, tiers, floor=floor, seed=seed)
    save_calibration(family.folder, found)
    return found, unasked
