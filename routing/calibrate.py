"""Asks a family's tiers, learns from what they answer, and keeps it with the family."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tierwise.evaluation.collect import (
    Progress,
    collect_outcomes,
    has_kept_up,
    judge_by,
    left_to_ask,
)
from tierwise.evaluation.outcomes import OUTCOMES, OutcomeStore
from tierwise.evaluation.remote_calls import timed_profile
from tierwise.evaluation.suites import Suite
from tierwise.routing.calibration import Calibration
from tierwise.routing.calibration_fit import fit_calibration
from tierwise.routing.calibration_store import save_calibration
from tierwise.routing.labelled import labelled
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family, Tier, nearest_first
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import family_profiles, save_profile
from tierwise.runtime.remote_tier import RemoteTier


def remote_calls(family: Family, suites: Sequence[Suite]) -> dict[RemoteTier, int]:
    """How many calls to each remote tier `calibrate_family` would make with ``remotes=True``.

    Raises:
        ConfigError: The family has no remote tier.
        CalibrationError: The file of outcomes is damaged.
    """
    if not family.remotes:
        raise ConfigError(
            f"{str(family.folder)!r} has no remote tiers to ask. Leave out --remotes, or add one "
            "first: tierwise connect"
        )
    with OutcomeStore(family.folder / OUTCOMES) as store:
        return {remote: left_to_ask(suites, store, remote) for remote in family.remotes}


def calibrate_family(
    family: Family,
    suites: Sequence[Suite],
    *,
    remotes: bool = False,
    minutes: float | None = None,
    floor: float = 0.9,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[Calibration, int]:
    """Asks what is not known yet, then learns from all that is.

    A remote tier takes part if it has answered all tasks of these suites that the others have,
    now or in an earlier run; else its success stays what its owner says.

    Args:
        family: Its tiers that have files are asked.
        suites: What to ask. Outcomes of other suites, from earlier runs, count as well, as far as
            every tier that takes part has answered them.
        remotes: Also ask its remote tiers, which may cost money; see `remote_calls`.
        minutes: For asking; None for as long as it takes.
        floor: Share of the best tier's quality that routing is to keep.
        seed: Of splits and draws.
        threads: For llama.cpp.
        progress: Told of each tier's turn, and of the learning, which takes half a minute for a
            thousand calls.
        note: Called with which remote tier was left out, and why, in English.

    Returns:
        What was learned, kept in the family's folder, and how many prompts were left unasked.

    Raises:
        CalibrationError: Not one call was answered by every tier, or the file of outcomes is
            damaged.
        DiskFullError: There is no room; what was asked is kept.
        ModelError: A tier cannot be loaded.
        MissingExtraError: Remote tiers are to be asked, and langchain-openai is not installed.
    """
    tiers = [tier for tier in family.tiers if tier.file]
    left_out: dict[str, str] = {}

    def leave_out(tier: RemoteTier, why: str) -> None:
        left_out[tier.name] = why

    with OutcomeStore(family.folder / OUTCOMES) as store:
        with Pool(family, threads=threads) as pool:
            unasked = collect_outcomes(
                family,
                suites,
                store,
                pool=pool,
                remotes=family.remotes if remotes else (),
                minutes=minutes,
                progress=progress,
                left_out=leave_out,
            )
        members: list[Tier | RemoteTier] = [*tiers]
        for one in family.remotes:
            if has_kept_up(suites, store, one, tiers):
                members.append(one)
            elif next(store.outcomes([one.sha256]), None) is not None:
                left_out.setdefault(one.name, "it has not answered all of this (--remotes)")
        remote = [one for one in members if isinstance(one, RemoteTier)]
        judge_by([*remote[::-1], *nearest_first(tiers)], suites, store)
        data = labelled(store, members, family_profiles(family))
        _time_remotes(members, store)
    if progress is not None:
        progress(f"learning from {len(data)} calls", 1.0)
    found = fit_calibration(data, family, members, floor=floor, seed=seed)
    save_calibration(family.folder, found)
    if note is not None:
        for name, why in left_out.items():
            note(f"{name} is left out: {why}")
    return found, unasked


def _time_remotes(members: Sequence[Tier | RemoteTier], store: OutcomeStore) -> None:
    """Keeps how quick remote tiers were, from this machine, for the forecasts of later calls."""
    here = [tier.sha256 for tier in members if isinstance(tier, Tier)][:1]
    prompts = {(one.suite, one.task): one.prompt_tokens for one in store.outcomes(here)}
    for remote in (one for one in members if isinstance(one, RemoteTier)):
        calls = [
            (prompts[one.suite, one.task], one.completion_tokens, one.seconds)
            for one in store.outcomes([remote.sha256])
            if one.seconds and one.completion_tokens and prompts.get((one.suite, one.task))
        ]
        if calls:
            save_profile(timed_profile(remote, calls))
