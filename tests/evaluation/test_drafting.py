"""What drafts gain is measured on this machine, and kept in the profile."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from family_factory import TierSpec, make_family, make_profile
from tiny_models import write_tiny_gguf

from tierwise.evaluation.drafting import measure_drafting, worth_measuring
from tierwise.runtime.drafting import PROMPT_LOOKUP
from tierwise.runtime.family import Family
from tierwise.runtime.profile import Profile, load_profile

FLAT = {1: 1.0, 16: 1.0}
STEEP = {1: 1.0, 16: 16.0}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("family")
    return make_family(
        folder / "family",
        [
            TierSpec(name, write_tiny_gguf(folder / f"{name}.gguf", seed=seed, context=context))
            for seed, (name, context) in enumerate(
                {"small": 2048, "large": 2048, "short": 256}.items()
            )
        ],
    )


def profile_of(family: Family, name: str, step_s: dict[int, float]) -> tuple[Path, Profile]:
    profile = make_profile(TierSpec(name, family.path(name)), family.tier(name))
    return family.path(name), profile.model_copy(update={"step_s": step_s})


def test_both_kinds_of_drafts_are_measured(family: Family) -> None:
    path, profile = profile_of(family, "large", FLAT)
    smaller = profile_of(family, "small", {1: 0.01, 16: 0.02})
    measured = measure_drafting(path, profile, smaller=smaller, runs=1)
    assert set(measured.drafting) == {PROMPT_LOOKUP, family.tier("small").sha256}
    assert all(0 < gain < math.inf for gain in measured.drafting.values())
    assert measured.model_copy(update={"drafting": {}}) == profile
    alone = measure_drafting(path, profile, runs=1)
    assert set(alone.drafting) == {PROMPT_LOOKUP}
    # What was measured is not measured again.
    assert worth_measuring(profile, smaller[1]) == list(measured.drafting)
    assert worth_measuring(measured, smaller[1]) == []
    assert measure_drafting(path, measured, smaller=smaller, runs=1) == measured


@pytest.mark.parametrize(
    ("steps", "small_steps", "found"),
    [
        ({}, FLAT, set()),
        (STEEP, FLAT, set()),
        (FLAT, {}, {PROMPT_LOOKUP}),
        (FLAT, {1: 1.0, 16: 1.0}, {PROMPT_LOOKUP}),
    ],
)
def test_what_cannot_pay_is_not_measured(
    family: Family, steps: dict[int, float], small_steps: dict[int, float], found: set[str]
) -> None:
    path, profile = profile_of(family, "large", steps)
    smaller = profile_of(family, "small", small_steps)
    assert set(measure_drafting(path, profile, smaller=smaller, runs=1).drafting) == found


def test_a_context_too_short_for_the_replies_is_left_out(family: Family) -> None:
    path, profile = profile_of(family, "short", FLAT)
    assert measure_drafting(path, profile, runs=1).drafting == {}


def test_the_profile_keeps_it(family: Family) -> None:
    _, profile = profile_of(family, "large", FLAT)
    measured = profile.model_copy(update={"drafting": {PROMPT_LOOKUP: 1.25}})
    again = Profile.model_validate_json(measured.model_dump_json())
    assert again == measured and again.step_s == FLAT
    assert load_profile("0" * 64) is None


def test_the_command_prints_the_gains(family: Family) -> None:
    command = [sys.executable, "-m", "tierwise.evaluation.drafting", str(family.path("large"))]
    command += ["--smaller", str(family.path("small")), "--threads", "1", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert set(printed) == {"step_s", "drafting"} and printed["step_s"]["1"] > 0
