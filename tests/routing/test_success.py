"""Forecasts of success: divergence as the prior, tasks as evidence, never falling with quality."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from family_factory import described_family as family
from family_factory import make_quality

from tierwise.routing.difficulty import GRADE_AT, choices
from tierwise.routing.success import PRIOR_TASKS, UNKNOWN_KL, SuccessModel, by_quality, isotonic
from tierwise.runtime.family import Quality, Tier
from tierwise.runtime.lineage import Distillation

GRADES = tuple(GRADE_AT)


def same(share: float) -> dict[str, float]:
    return dict.fromkeys(GRADES, share)


@pytest.mark.parametrize(
    ("values", "weights", "wanted"),
    [
        ([], [], []),
        ([1], [1], [1]),
        ([1, 2, 3], [1, 1, 1], [1, 2, 3]),
        ([3, 1], [1, 1], [2, 2]),
        ([3, 1], [3, 1], [2.5, 2.5]),
        ([1, 3, 2, 4], [1, 1, 1, 1], [1, 2.5, 2.5, 4]),
        ([4, 3, 2, 1], [1, 1, 1, 1], [2.5] * 4),
        ([1, 5, 4, 0], [1, 1, 1, 1], [1, 3, 3, 3]),  # the last pulls both before it down
        ([2, 2, 2], [1, 2, 3], [2, 2, 2]),
    ],
)
def test_isotonic_by_hand(values: list[float], weights: list[float], wanted: list[float]) -> None:
    assert isotonic(values, weights) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(20))
def test_isotonic_holds_its_promises(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(1, 12)
    values = [rng.random() for _ in range(count)]
    weights = [rng.uniform(0.1, 10) for _ in range(count)]
    found = isotonic(values, weights)
    assert len(found) == count
    assert all(a <= b for a, b in itertools.pairwise(found))
    before = sum(v * w for v, w in zip(values, weights, strict=True))
    after = sum(v * w for v, w in zip(found, weights, strict=True))
    assert after == pytest.approx(before)
    assert min(values) - 1e-12 <= found[0] and found[-1] <= max(values) + 1e-12
    assert isotonic(found, weights) == pytest.approx(found)

    def cost(candidate: list[float]) -> float:
        return sum(w * (c - v) ** 2 for c, v, w in zip(candidate, values, weights, strict=True))

    for _ in range(50):  # no other non-decreasing sequence is nearer
        assert cost(found) <= cost(sorted(f + rng.gauss(0, 0.1) for f in found)) + 1e-12


def test_isotonic_wants_a_weight_for_each_value() -> None:
    with pytest.raises(ValueError, match="zip"):
        isotonic([1, 2], [1])


def test_order_of_quality() -> None:
    mixed = family(
        ("base", 100, make_quality(0.0)),
        ("near", 50, make_quality(0.1)),
        ("adopted", 400, make_quality(None)),
        ("far", 20, make_quality(1.0)),
        ("twin", 90, make_quality(0.1)),
    )
    assert [tier.name for tier in by_quality(mixed)] == ["far", "adopted", "near", "twin", "base"]


def test_a_taught_student_is_ranked_by_what_it_can_do() -> None:
    """Not by its divergence, which is that of all that it was not taught."""

    def ranked(right: float) -> tuple[list[str], float]:
        made = family(
            ("student", 30, make_quality(2.0, same(right), 100)),
            ("coarse", 50, make_quality(0.1, same(0.4), 100)),
            ("base", 100, make_quality(0.0, same(0.6), 100)),
        )
        tiers = [taught(tier) if tier.name == "student" else tier for tier in made.tiers]
        made = made.model_copy(update={"tiers": tuple(tiers)})
        return [tier.name for tier in by_quality(made)], SuccessModel(made)(0.5)["student"]

    assert ranked(0.58)[0] == ["coarse", "student", "base"]
    assert ranked(0.1)[0] == ["student", "coarse", "base"]
    assert ranked(0.7)[0] == ["coarse", "student", "base"]  # no better than what taught it
    assert ranked(0.1)[1] < ranked(0.3)[1] < ranked(0.58)[1] == pytest.approx(0.58, abs=0.03)


def taught(tier: Tier) -> Tier:
    training = Distillation(
        teacher_sha256="0" * 64,
        loss="forward_kl",
        steps=1,
        tokens=1,
        seconds=1.0,
        kl_before=3.0,
        kl_after=2.0,
    )
    lineage = tier.lineage.model_copy(update={"distillation": training})
    return tier.model_copy(update={"lineage": lineage})


@pytest.mark.parametrize("seed", range(20))
def test_forecasts_never_fall_with_quality_and_stay_chances(seed: int) -> None:
    rng = random.Random(seed)

    def quality() -> Quality:
        kl = None if rng.random() < 0.2 else rng.expovariate(5)
        measured = {g: rng.random() for g in GRADES if rng.random() < 0.8}
        return make_quality(kl, measured if rng.random() < 0.8 else None, rng.randint(1, 40))

    tiers = [(f"t{i}", rng.randint(1, 100), quality()) for i in range(rng.randint(1, 6))]
    made = family(*tiers)
    model = SuccessModel(made)
    for step in range(11):
        chances = model(step / 10)
        ordered = [chances[tier.name] for tier in by_quality(made)]
        assert set(chances) == {name for name, _, _ in tiers}
        assert all(a <= b + 1e-12 for a, b in itertools.pairwise(ordered))
        assert all(0 <= chance <= 1 for chance in ordered)


def test_without_tasks_the_divergence_decides() -> None:
    made = family(("small", 1, make_quality(0.2)), ("base", 9, make_quality(0.0)))
    for grade, at in GRADE_AT.items():
        chances = SuccessModel(made)(at)
        assert chances["base"] == pytest.approx(0.5), grade  # not known; only shares matter
        assert chances["small"] / chances["base"] == pytest.approx(math.exp(-0.2 * choices(at)))


def test_tasks_outweigh_the_prior_as_they_grow() -> None:
    def small(n: int) -> float:
        made = family(
            ("small", 1, make_quality(0.5, same(0.75), n)),
            ("base", 9, make_quality(0.0, same(1.0), 400)),
        )
        return SuccessModel(made)(GRADE_AT["easy"])["small"]

    prior = math.exp(-0.5 * choices(GRADE_AT["easy"]))
    assert prior < small(4) < small(40) < small(400) < 0.75
    assert small(4) == pytest.approx((PRIOR_TASKS * prior + 4 * 0.75) / (PRIOR_TASKS + 4))


def test_a_lucky_small_tier_is_not_put_above_its_better() -> None:
    made = family(
        ("small", 1, make_quality(0.01, same(1.0))), ("base", 9, make_quality(0.0, same(0.5)))
    )
    chances = SuccessModel(made)(0.5)
    assert chances["small"] == pytest.approx(chances["base"])
    assert 0.5 < chances["base"] < 1.0


def test_adopted_tiers_count_as_far_from_the_base_until_measured() -> None:
    made = family(("mine", 1, make_quality(None)), ("base", 9, make_quality(0.0, same(0.75))))
    at = GRADE_AT["medium"]
    chances = SuccessModel(made)(at)
    base = (PRIOR_TASKS * 0.75 + 16 * 0.75) / (PRIOR_TASKS + 16)
    assert chances["base"] == pytest.approx(base)
    assert chances["mine"] == pytest.approx(0.75 * math.exp(-UNKNOWN_KL * choices(at)))
    tested = family(
        ("mine", 1, make_quality(None, same(0.75))), ("base", 9, make_quality(0.0, same(0.75)))
    )
    assert SuccessModel(tested)(at)["mine"] > chances["mine"]


def test_only_adopted_tiers_are_all_alike() -> None:
    made = family(("a", 1, make_quality(None)), ("b", 9, make_quality(None)))
    assert SuccessModel(made)(0.5) == {"a": 0.5, "b": 0.5}


def test_between_grades_it_interpolates_and_beyond_them_it_stays() -> None:
    made = family(("base", 9, make_quality(0.0, {"easy": 1.0, "medium": 0.5, "hard": 0.25})))
    model = SuccessModel(made)

    def at(difficulty: float) -> float:
        return model(difficulty)["base"]

    assert [at(GRADE_AT[grade]) for grade in GRADES] == pytest.approx([1.0, 0.5, 0.25])
    assert at((GRADE_AT["easy"] + GRADE_AT["medium"]) / 2) == pytest.approx(0.75)
    assert at(0.0) == at(GRADE_AT["easy"]) and at(1.0) == at(GRADE_AT["hard"])


def test_a_grade_without_tasks_is_left_to_the_prior() -> None:
    made = family(
        ("small", 1, make_quality(0.1, {"easy": 0.75})),
        ("base", 9, make_quality(0.0, {"easy": 1.0})),
    )
    model = SuccessModel(made)
    hard = model(GRADE_AT["hard"])
    assert hard["base"] == pytest.approx(0.5)
    assert hard["small"] == pytest.approx(0.5 * math.exp(-0.1 * choices(GRADE_AT["hard"])))


def test_where_nobody_ever_succeeded_the_nearer_tier_is_still_the_better_one() -> None:
    made = family(("s", 1, make_quality(0.1, same(0.0))), ("b", 9, make_quality(0.0, same(0.0))))
    chances = SuccessModel(made)(0.9)
    assert 0 < chances["s"] < chances["b"] < 0.03
