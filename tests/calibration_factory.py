"""Families with outcomes of which it is known what they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from family_factory import TierSpec, make_family
from scripted_model import write_scripted_gguf
from tiny_models import write_tiny_gguf

from tierwise.evaluation.outcomes import KnownTask, OutcomeStore, TierOutcome
from tierwise.routing.calibration import Calibration, Judged
from tierwise.routing.calibration_fit import fit_calibration
from tierwise.routing.estimators_prior import StructuralPrior
from tierwise.routing.features import PLAIN_SPEC
from tierwise.routing.labelled import Labelled, labelled
from tierwise.routing.signals import Signals
from tierwise.routing.verdict import Verdict
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.family import Family
from tierwise.runtime.message_json import call_to_json
from tierwise.runtime.profile import family_profiles
from tierwise.runtime.resources import Resources

PLENTY = Resources(available_bytes=4 * 2**30, total_bytes=8 * 2**30, threads=1)
EASY, HARD = ("name", "list", "show", "find"), ("prove", "derive", "integrate", "optimise")
PLACES = ("Oslo", "Rome", "Lima", "Cairo", "Quito", "Hanoi", "Turin", "Accra", "Porto", "Delhi")

Right = Callable[[bool, float], tuple[bool, bool]]
"""Whether the small and the large tier are right, of a call that is hard or not, and a chance."""


def by_kind(hard: bool, chance: float) -> tuple[bool, bool]:
    """The small tier can do what is easy."""
    return (not hard) ^ (chance < 0.05), chance < 0.93


def by_chance(hard: bool, chance: float) -> tuple[bool, bool]:
    return chance < 0.6, 0.2 < chance < 0.9


def scripted_pair(folder: Path, script: Mapping[str, str], *, context: int = 2048) -> Family:
    """Two tiers that reply alike, the large one better and slower by what was measured of it."""
    files = [
        write_scripted_gguf(folder / f"{extra}.gguf", {**script, extra: "Yes."}, context=context)
        for extra in ("small", "large")  # profiles go by the file, so the files must differ
    ]
    specs = [
        TierSpec("small", files[0], kl=0.1),
        TierSpec("large", files[1], prefill=100.0, decode=10.0),
    ]
    return make_family(folder / "pair", specs)


def two_tiers(folder: Path) -> Family:
    """Of one and three layers, the larger four times as slow."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [write_tiny_gguf(folder / f"{n}.gguf", layers=n, context=2048) for n in (1, 3)]
    specs = [
        TierSpec("small", files[0], kl=0.2, prefill=4000, decode=400),
        TierSpec("large", files[1], kl=0.0, prefill=1000, decode=100),
    ]
    return make_family(folder / "family", specs)


def request(number: int, hard: bool) -> str:
    verb = (HARD if hard else EASY)[number // 2 % 4]
    return f"{verb} what {PLACES[number % 10]} and {PLACES[number // 10 % 10]} share, part {number}"


def fill(
    family: Family, right: Right, count: int = 640, *, copies: int = 1, sure: bool = False
) -> None:
    """Outcomes of both tiers on calls of which every second one is hard.

    Args:
        copies: Of every prompt.
        sure: Whether tiers are surer of what is right.
    """
    rng = np.random.default_rng(3)
    tasks, outcomes = [], []
    for number in range(count):
        hard, chance = bool(number % 2), float(rng.random())
        call = Call((Message("user", request(number // copies, hard)),), max_tokens=40)
        tasks.append(KnownTask("made", str(number), str(number // copies), call_to_json(call)))
        for tier, passed in zip(family.tiers, right(hard, chance), strict=True):
            outcomes.append(
                TierOutcome(
                    suite="made",
                    task=str(number),
                    tier=tier.sha256,
                    passed=passed,
                    seconds=None,
                    joules=None,
                    prompt_tokens=30,
                    cached_tokens=0,
                    completion_tokens=20,
                    forced_tokens=0,
                    margins=(0.9 if passed else 0.2, 1.0) if sure else (1.0,),
                    reply={"text": "x"},
                )
            )
    with OutcomeStore(family.folder / "outcomes.sqlite") as store:
        store.add(tasks, outcomes)


def data_of(family: Family) -> Labelled:
    with OutcomeStore(family.folder / "outcomes.sqlite") as store:
        return labelled(store, family.tiers, family_profiles(family))


def calibrated(family: Family, right: Right, count: int = 640, **options: Any) -> Calibration:
    fill(family, right, count, **options)
    return fit_calibration(data_of(family), family, family.tiers)


def ask(hard: bool) -> Call:
    return Call((Message("user", request(702, hard)),), max_tokens=40)


def made_calibration(*, route: bool = True, signals: Signals | None = None) -> Calibration:
    """Of a small and a large tier, learned from nothing; judged on chances all over the place."""
    rng = np.random.default_rng(0)
    predicted = rng.random((500, 2))
    cost = np.tile([0.1, 0.4], (500, 1))
    return Calibration(
        tiers=("small", "large"),
        sha256=("0" * 64, "1" * 64),
        predictor=StructuralPrior(np.array([0.0, 1.0]), np.array([[0.5, 0.8], [0.4, 0.7]])),
        curves=None,
        signals=signals,
        spec=PLAIN_SPEC,
        means=np.array([0.5, 0.8]),
        usual=np.array([0.5, 0.8]),
        verified=np.array([[0.6, 0.1], [0.85, 0.2]]),
        estimator="structural_prior",
        areas={},
        reliability={},
        verdict=Verdict(route, "because", "small", 500, 500, ()),
        floor=0.9,
        suites={"made": 500},
        judged=Judged(predicted, predicted.round(), cost, np.arange(500)),
    )
