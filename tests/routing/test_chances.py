"""Chances of tiers that a calibration does not know, and promises that it cannot give for them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from calibration_factory import PLENTY, ask, by_kind, calibrated, two_tiers
from family_factory import TierSpec, make_family
from tiny_models import write_tiny_gguf

from tierwise.routing.budget import Budget
from tierwise.routing.calibration import Calibration
from tierwise.routing.router import Router
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool
from tierwise.runtime.remote_tier import RemoteTier


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Calibration]:
    family = two_tiers(tmp_path_factory.mktemp("pair"))
    return family, calibrated(family, by_kind)


@pytest.fixture
def grown(pair: tuple[Family, Calibration], tmp_path: Path) -> Family:
    """The pair, and a tier that is further from the base than both and was never calibrated."""
    family, _ = pair
    other = write_tiny_gguf(tmp_path / "other.gguf", layers=2, context=2048, seed=5)
    old = [
        TierSpec(tier.name, family.path(tier), kl=tier.quality.divergence.kl_mean)
        for tier in family.tiers
        if tier.quality.divergence is not None
    ]
    return make_family(tmp_path / "family", [TierSpec("adopted", other, kl=1.0), *old])


def test_a_tier_that_came_later_does_not_take_every_call(
    pair: tuple[Family, Calibration], grown: Family, caplog: pytest.LogCaptureFixture
) -> None:
    """The build asked easier tasks than the calibration: only the proportions carry over."""
    _, found = pair
    assert found.is_of(grown)
    with (
        Pool(grown, probe=lambda: PLENTY, threads=1) as pool,
        caplog.at_level(logging.WARNING, "tierwise"),
    ):
        router = Router(grown, pool, probe=lambda: PLENTY, calibration=found)
        assert "not calibrated: adopted" in caplog.text
        for hard in (False, True):
            chances = {f.tier: f.success for f in router.decide(ask(hard)).forecasts}
            known = found.success(ask(hard), range(30))
            assert chances["adopted"] < min(known.values())
        assert router.decide(ask(True)).tier == "large"


def test_no_promise_is_given_for_what_it_was_not_tested_on(
    pair: tuple[Family, Calibration], grown: Family
) -> None:
    _, found = pair
    budget = Budget(quality=0.7, guarantee=0.9)
    far = RemoteTier(name="far", url="http://127.0.0.1:9/v1", model="m", success=1.0)
    grown = grown.model_copy(update={"remotes": (far,)})
    with Pool(grown, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(grown, pool, probe=lambda: PLENTY, calibration=found)
        verdicts = {f.tier: f.verdict for f in router.decide(ask(False), budget=budget).forecasts}
        assert verdicts["adopted"] == verdicts["far"] == "no promise was tested on it"
        assert verdicts["small"] == "chosen"


def test_a_promise_is_of_the_tiers_that_may_be_asked(pair: tuple[Family, Calibration]) -> None:
    family, found = pair
    both, small = found.promise(0.7, 0.9), found.promise(0.7, 0.9, ["small"])
    assert both.holds and small.holds
    # One tier keeps any share of its own successes; hard calls go to the better one of two.
    assert small.threshold == 0.0 < both.threshold
    with pytest.raises(ConfigError, match="none of the enabled tiers is calibrated"):
        found.promise(0.7, 0.9, ["adopted"])
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(family, pool, probe=lambda: PLENTY, calibration=found, tiers=["small"])
        budget = Budget(quality=0.7, guarantee=0.9)
        assert router.decide(ask(True), budget=budget).tier == "small"
