"""Calibration learns what outcomes hold, promises only what they show, and survives its file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibration_factory import (
    PLENTY,
    ask,
    by_chance,
    by_kind,
    calibrated,
    data_of,
    fill,
    two_tiers,
)

from tierwise.evaluation.outcomes import KnownTask, OutcomeStore, TierOutcome
from tierwise.routing.budget import Budget
from tierwise.routing.calibration_fit import fit_calibration
from tierwise.routing.calibration_store import (
    ARRAYS,
    FOUND,
    calibration_json,
    calibration_of,
    load_calibration,
    save_calibration,
)
from tierwise.routing.estimators_prior import StructuralPrior
from tierwise.routing.features import call_features
from tierwise.routing.labelled import labelled
from tierwise.routing.risk import Guarantee
from tierwise.routing.router import Router
from tierwise.runtime.chat import Reply
from tierwise.runtime.errors import CalibrationError, ConfigError
from tierwise.runtime.family import Family
from tierwise.runtime.message_json import call_to_json
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import family_profiles
from tierwise.runtime.remote_tier import RemoteTier


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return two_tiers(tmp_path)


def test_it_learns_which_calls_need_the_large_tier(family: Family) -> None:
    found = calibrated(family, by_kind)
    assert found.verdict.route, found.verdict
    assert found.estimator != "structural_prior"
    easy, hard = (found.success(ask(h), range(30)) for h in (False, True))
    assert easy["small"] > 0.85 and hard["small"] < 0.5
    assert min(easy["large"], hard["large"]) > 0.8
    for tier in ("small", "large"):
        assert found.reliability[tier].ece_mass.value < 0.1
    assert found.means == pytest.approx([0.5, 0.93], abs=0.05)
    assert found.suites == {"made": 640}


def test_labels_that_are_noise_do_not_route(family: Family) -> None:
    found = calibrated(family, by_chance)
    assert not found.verdict.route
    # Then every call has the same chances: those of all calls.
    chances = [found.success(ask(hard), range(30)) for hard in (False, True)]
    assert chances[0] == chances[1]
    assert chances[0] == pytest.approx({"small": 0.6, "large": 0.7}, abs=0.05)


def test_the_luck_of_a_few_calls_does_not_choose_a_tier(family: Family) -> None:
    """What the build measured counts beside them, and less and less as they grow."""
    calls = {10: 0.0, 40: 0.0, 640: 0.0}
    for count in calls:
        (family.folder / "outcomes.sqlite").unlink(missing_ok=True)
        found = calibrated(family, lambda hard, chance: (True, chance < 0.8), count)
        raw, drawn = (np.diff(one)[0] for one in (found.means, found.usual))
        assert found.usual[0] <= 1.0
        calls[count] = (drawn - raw) / -raw
    assert calls[10] > 0.5 > calls[640] and calls[10] > calls[40] > calls[640] > 0


@pytest.mark.parametrize("passed", [True, False])
def test_one_class_only(family: Family, passed: bool) -> None:
    found = calibrated(family, lambda hard, chance: (passed, passed))
    assert not found.verdict.route
    said = "succeeded" if passed else "failed"
    assert f"every tier {said}" in found.verdict.reason
    assert found.verdict.best_fixed == "small"


def test_ten_rows_and_duplicates_are_too_few(family: Family, tmp_path: Path) -> None:
    few = calibrated(family, by_kind, 10)
    assert not few.verdict.route and "at least 50" in few.verdict.reason
    assert few.estimator == "structural_prior"
    (family.folder / "outcomes.sqlite").unlink()
    copies = calibrated(family, by_kind, 640, copies=64)
    assert not copies.verdict.route and "different" in copies.verdict.reason


def test_calls_that_only_some_tiers_answered_are_left_out(family: Family) -> None:
    fill(family, by_kind, 20)
    small = family.tier("small")
    with OutcomeStore(family.folder / "outcomes.sqlite") as store:
        (first, *_) = store.outcomes([small.sha256])
        store.add(
            [KnownTask("made", "alone", "alone", call_to_json(ask(True)))],
            [TierOutcome(**{**_fields(first), "task": "alone"})],
        )
    data = data_of(family)
    assert len(data) == 20
    assert data.spent[:, 1] == pytest.approx(30 / 1000 + 20 / 100, rel=0.1)
    with (
        OutcomeStore(family.folder / "other.sqlite") as empty,
        pytest.raises(CalibrationError, match="tierwise calibrate"),
    ):
        labelled(empty, family.tiers, family_profiles(family))


def _fields(outcome: TierOutcome) -> dict[str, object]:
    return {name: getattr(outcome, name) for name in TierOutcome.__slots__}


def test_the_file_gives_back_what_was_kept(family: Family) -> None:
    found = calibrated(family, by_kind)
    save_calibration(family.folder, found)
    known = load_calibration(family.folder)
    assert calibration_json(known) == calibration_json(found)
    x = np.stack([call_features(ask(hard), range(30)) for hard in (False, True)])
    assert np.allclose(known.chances(x), found.chances(x), atol=1e-6)
    assert known.promise(0.7, 0.9) == found.promise(0.7, 0.9)
    first = (family.folder / FOUND).read_bytes()
    save_calibration(family.folder, found)
    assert (family.folder / FOUND).read_bytes() == first


def test_a_calibration_that_cannot_be_used_is_told_and_left(
    family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    assert calibration_of(family) is None and not caplog.records
    with pytest.raises(CalibrationError, match="tierwise calibrate"):
        load_calibration(family.folder)
    save_calibration(family.folder, calibrated(family, by_kind, 200))
    with caplog.at_level(logging.WARNING, "tierwise"):
        assert calibration_of(family) is not None and not caplog.records
        data = bytearray((family.folder / ARRAYS).read_bytes())
        data[len(data) // 2] ^= 1
        (family.folder / ARRAYS).write_bytes(data)
        assert calibration_of(family) is None
        assert "no calibration that this Tierwise can read" in caplog.text
        caplog.clear()
        save_calibration(family.folder, fit_calibration(data_of(family), family, family.tiers))
        tiers = tuple(t.model_copy(update={"sha256": "f" * 64}) for t in family.tiers)
        other = family.model_copy(update={"tiers": tiers})
        assert calibration_of(other) is None
        assert "tiers have changed" in caplog.text


def test_a_router_goes_by_its_calibration(family: Family) -> None:
    found = calibrated(family, by_kind)
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(family, pool, probe=lambda: PLENTY, calibration=found)
        assert [tier.name for tier in router.tiers] == ["small", "large"]
        assert router.decide(ask(False)).tier == "small"
        assert router.decide(ask(True)).tier == "large"
        assert router.decide(ask(True), budget=Budget(quality=0.0)).tier == "small"
        without = Router(family, pool, probe=lambda: PLENTY)
        with pytest.raises(ConfigError, match=r"guarantee=0\.95.*tierwise calibrate"):
            without.decide(ask(True), budget=Budget(guarantee=0.95))


def test_a_guarantee_is_kept_or_the_best_tier_answers(family: Family) -> None:
    found = calibrated(family, by_kind)
    promise = found.promise(0.7, 0.9)
    assert promise.holds and promise.reached >= 0.7
    assert promise.threshold is not None and promise.threshold < 1
    assert not found.promise(0.99, 0.999).holds
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(family, pool, probe=lambda: PLENTY, calibration=found)
        kept = Budget(quality=0.7, guarantee=0.9)
        assert router.decide(ask(False), budget=kept).tier == "small"
        careful = Budget(quality=0.99, guarantee=0.999)
        easy = router.decide(ask(False), budget=careful)
        best = max(easy.forecasts, key=lambda forecast: forecast.success)
        assert easy.tier == best.tier


def test_a_promise_is_kept_in_the_order_that_it_was_tested_in(family: Family) -> None:
    """A tier that is slow just now must not hand its calls to one that nothing was promised of."""
    found = calibrated(family, by_kind)

    def promised(cost: np.ndarray) -> Guarantee:
        judged = replace(found.judged, cost=cost)
        return replace(found, judged=judged, _promises={}).promise(0.7, 0.9)

    cost = found.judged.cost.copy()
    assert promised(cost[:, ::-1]) != promised(cost) == found.promise(0.7, 0.9)
    # Call by call the costs may be in another order than they are on average.
    cost[::3] = cost[::3, ::-1]
    assert promised(cost) == found.promise(0.7, 0.9)
    slow = family_profiles(family)["small"].model_copy(
        update={"prefill_tokens_per_s": 10.0, "decode_tokens_per_s": 1.0}
    )
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(
            family, pool, probe=lambda: PLENTY, calibration=found, profiles={"small": slow}
        )
        assert router.decide(ask(False)).tier == "large"
        decision = router.decide(ask(False), budget=Budget(quality=0.7, guarantee=0.9))
        assert decision.tier == "small" and "usually the quickest" in decision.reason
    small, large = decision.forecasts
    other = replace(small, tier="other")
    assert found.cheapest_first([large, other, small]) == [small, other, large]


def test_a_promise_is_kept_by_the_cheap_tier_though_it_is_the_better_one(family: Family) -> None:
    """Tiers stand in the order of their success, and are asked in that of their cost."""
    found = calibrated(
        family, lambda hard, chance: (chance < (0.3 if hard else 0.98), chance < (0.9 * hard))
    )
    assert found.verdict.route and found.promise(0.3, 0.9).threshold == 0
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(family, pool, probe=lambda: PLENTY, calibration=found)
        decision = router.decide(ask(True), budget=Budget(quality=0.3, guarantee=0.9))
    assert [tier.name for tier in router.tiers] == ["large", "small"]
    assert decision.tier == "small" and "of 2 that reach the quality floor" in decision.reason


def test_the_worse_tier_by_outcomes_comes_first_whatever_its_divergence(family: Family) -> None:
    found = calibrated(family, lambda hard, chance: (chance < 0.9, chance < 0.5), 200)
    assert [tier.name for tier in found.ordered(family.tiers)] == ["large", "small"]
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(family, pool, probe=lambda: PLENTY, calibration=found)
        assert [tier.name for tier in router.tiers] == ["large", "small"]
        assert router.better_than("large") == (family.tier("small"),)


def test_a_tier_on_another_machine_is_learned_like_any_other(family: Family) -> None:
    """It alone can do what is hard, and nothing else."""
    remote = RemoteTier(name="far", url="http://127.0.0.1:9/v1", model="m", success=0.2)
    changed = family.model_copy(update={"remotes": (remote,)})
    changed.save(family.folder)
    family = Family.load(family.folder)
    fill(family, lambda hard, chance: (not hard, not hard and chance < 0.9))
    with OutcomeStore(family.folder / "outcomes.sqlite") as store:
        small = list(store.outcomes([family.tier("small").sha256]))
        told = {"tier": remote.sha256, "seconds": 0.07, "prompt_tokens": 5, "margins": ()}
        far = [{**_fields(one), **told, "passed": int(one.task) % 2 == 1} for one in small]
        store.add([], [TierOutcome(**fields) for fields in far])
        tiers = (*family.tiers, remote)
        data = labelled(store, tiers, family_profiles(family))
    assert data.spent[:, 2] == pytest.approx(np.full(640, 0.07))
    alone = call_features(data.calls[0], range(30))
    assert np.array_equal(data.x[0], alone)  # by this machine's prompts, not by the server's count
    found = fit_calibration(data, family, tiers)
    assert found.verdict.route and found.tiers == ("small", "large", "far")
    easy, hard = (found.success(ask(h), range(30)) for h in (False, True))
    assert easy["far"] < 0.3 and hard["far"] > 0.7
    assert found.after("far", 0.5, ()) is None  # a server does not say how sure it was
    save_calibration(family.folder, found)
    known = calibration_of(family)
    assert known is not None and calibration_json(known) == calibration_json(found)
    assert calibration_of(family.model_copy(update={"remotes": ()})) is None
    prior = StructuralPrior.of(family, ["small", "far"]).chances
    assert (prior[:, 1] == 0.2).all()
    unsaid = remote.model_copy(update={"success": None})
    best = StructuralPrior.of(
        family.model_copy(update={"remotes": (unsaid,)}), ["small", "large", "far"]
    ).chances
    assert np.array_equal(best[:, 2], best[:, 1])
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(family, pool, probe=lambda: PLENTY, calibration=known)
        decision = router.decide(ask(True))
        assert {f.tier: f.success for f in decision.forecasts} == pytest.approx(hard, abs=0.1)
        assert decision.tier == "far", decision.table()
        assert router.decide(ask(False)).tier == "small"


def test_a_floor_that_cannot_be(family: Family) -> None:
    fill(family, by_kind, 20)
    with pytest.raises(ConfigError, match=r"floor must be in 0\.\.1, got 1\.5"):
        fit_calibration(data_of(family), family, family.tiers, floor=1.5)


def test_a_reply_that_its_tier_was_not_sure_of_is_doubted(family: Family) -> None:
    """The small tier is right on most calls, and its margins tell which."""
    found = calibrated(family, lambda hard, chance: (by_kind(hard, chance)[0], True), sure=True)
    # Long requests are the hard ones here, so that their length would do as well.
    assert found.verdict.route or "longest requests" in found.verdict.reason
    found = replace(found, verdict=replace(found.verdict, route=True))
    before = found.success(ask(False), range(30))["small"]
    sure, unsure = (found.after("small", before, margins) for margins in ((0.9, 1.0), (0.2, 1.0)))
    assert sure is not None and unsure is not None
    assert sure > 0.85 and unsure < 0.5
    assert found.after("adopted since", 0.5, ()) is None
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(family, pool, probe=lambda: PLENTY, calibration=found)
        decision = router.decide(ask(False))
        assert decision.tier == "small"
        assert router.doubt(decision, Reply("x", margins=(0.9, 1.0)), Budget()) == ""
        said = router.doubt(decision, Reply("x", margins=(0.2, 1.0)), Budget())
        assert said.startswith("by how sure it was, it is right with a chance of ")
        assert router.doubt(decision, Reply("x", margins=(0.2, 1.0)), Budget(quality=0)) == ""
        best = router.decide(ask(True))
        assert best.tier == "large"  # there is nobody better to ask
        assert router.doubt(best, Reply("x", margins=(0.2,)), Budget()) == ""
        plain = Router(family, pool, probe=lambda: PLENTY)
        assert plain.doubt(decision, Reply("x", margins=(0.2,)), Budget()) == ""
