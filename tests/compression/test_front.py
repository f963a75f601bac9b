"""Which of the measured tiers stay, and what is said of the rest."""

from __future__ import annotations

import random
from dataclasses import replace

from tierwise.compression.front import NOISE, Measured, _beats, far_from_able, split_front


def tier(
    name: str, size: int = 100, seconds: float = 1.0, kl: float = 0.1, top1: float = 0.9
) -> Measured:
    return Measured(name, size * 1_000_000, seconds / 2, seconds / 2, kl, top1)


def kept(tiers: list[Measured], most: int = 12, min_top1: float = 0.0) -> list[str]:
    return [found.name for found in split_front(tiers, most=most, min_top1=min_top1)[0]]


def test_a_tier_that_is_beaten_goes_and_the_reason_has_the_numbers() -> None:
    tiers = [tier("better", 100, 1.0, 0.05), tier("worse", 150, 1.5, 0.1)]
    front, dropped = split_front(tiers, most=3, min_top1=0.0)
    assert [found.name for found in front] == ["better"]
    assert dropped == {
        "worse": "better beats it: 100 against 150 MB, 0.50 + 0.50 against 0.75 + 0.75 s a call, "
        "KL 0.0500 against 0.1000"
    }


def test_every_merit_keeps_a_tier() -> None:
    tiers = [
        tier("small", 50, 2.0, 0.3),
        tier("fast", 150, 0.5, 0.3),
        tier("near", 150, 2.0, 0.01),
    ]
    assert kept(tiers) == ["fast", "small", "near"]


def test_a_machines_noise_is_no_merit() -> None:
    near, rival = tier("near", 100, 1.0, 0.1), tier("rival", 90, 1.0 + 0.9 * NOISE, 0.1)
    assert kept([near, rival]) == ["rival"]
    assert kept([near, tier("rival", 90, 1.0 + 1.1 * NOISE, 0.1)]) == ["near", "rival"]
    # Within the noise alone, neither is better.
    assert kept([near, tier("twin", 100, 1.0 + 0.9 * NOISE, 0.1)]) == ["near", "twin"]


def test_the_rival_named_is_one_that_stays() -> None:
    """Within the noise, "beats" goes in chains: z beats a, a beats b, z does not beat b."""
    z, a, b = tier("z", kl=0.1, seconds=1.08), tier("a", kl=0.2, seconds=1.04), tier("b", kl=0.3)
    assert _beats(a, b) and _beats(z, a) and not _beats(z, b)
    c = tier("c", kl=0.25, seconds=0.97)
    front, dropped = split_front([a, b, c, z], most=3, min_top1=0.0)
    assert [found.name for found in front] == ["c", "z"]
    assert dropped["b"].startswith("c beats it") and dropped["a"].startswith("z beats it")


def test_far_tiers_go_whatever_their_merits() -> None:
    tiers = [tier("good", 200, 2.0, 0.1, 0.9), tier("far", 50, 0.5, 2.0, 0.4)]
    front, dropped = split_front(tiers, most=3, min_top1=0.6)
    assert [found.name for found in front] == ["good"]
    assert dropped == {
        "far": "too far from the base: it agrees on 40% of tokens, 60% are asked for"
    }
    # A far tier drops no other either.
    assert kept([*tiers, tier("mid", 60, 0.6, 2.5, 0.7)], min_top1=0.6) == ["mid", "good"]


def taught(name: str, size: int, seconds: float, kl: float) -> Measured:
    return replace(tier(name, size, seconds, kl, top1=0.5), distilled=True)


def test_distilled_tiers_are_judged_by_what_they_can_do() -> None:
    tiers = [tier("good", 200, 2.0, 0.1, 0.9), taught("taught", 90, 1.0, 0.9)]
    assert kept(tiers, min_top1=0.6) == ["taught", "good"]
    able = {"good": 0.5, "taught": 0.31}
    assert far_from_able(tiers, able, min_tools=0.6) == {}
    assert far_from_able(tiers, able | {"taught": 0.29}, min_tools=0.6) == {
        "taught": "it does 29% of the tool tasks and good 50%; at least 60% of that are asked for"
    }
    # Where the best does nothing, nothing can be asked for.
    assert far_from_able(tiers, {"good": 0.0, "taught": 0.0}, min_tools=0.6) == {}
    assert far_from_able(tiers[1:], able, min_tools=1.0) == {}  # it is the best itself


def test_prefill_and_decode_are_two_costs() -> None:
    """Who reads prompts faster stays, though whole calls take it longer."""
    reader, writer = (
        Measured("reader", 100, 0.4, 0.7, 0.2, 0.9),
        Measured("writer", 90, 0.6, 0.4, 0.1, 0.9),
    )
    assert kept([reader, writer]) == ["writer", "reader"]
    assert kept([replace(reader, prefill_s=0.62), writer]) == ["writer"]


def test_the_best_stays_even_where_all_are_far() -> None:
    tiers = [tier("bad", 100, 1.0, 1.0, 0.3), tier("worse", 50, 0.5, 2.0, 0.2)]
    assert kept(tiers, min_top1=0.6) == ["bad"]


def test_the_one_that_is_missed_least_goes() -> None:
    tiers = [
        tier("q8", 200, 2.00, 0.01),
        tier("q6", 160, 1.90, 0.02),  # q8 does its work at nearly the same cost
        tier("q4", 100, 1.20, 0.10),
        tier("q3", 80, 1.00, 0.40),
    ]
    front, dropped = split_front(tiers, most=3, min_top1=0.0)
    assert [found.name for found in front] == ["q3", "q4", "q8"]
    assert dropped == {"q6": "3 tiers were asked for, and another is nearly as good"}
    _, dropped = split_front(tiers, most=1, min_top1=0.0)
    assert dropped["q6"] == "1 tier was asked for, and another is nearly as good"


def test_quality_and_speed_stay_when_few_are_asked_for() -> None:
    tiers = [
        tier("fast", 100, 0.5, 0.5),
        tier("middle", 90, 0.9, 0.2),
        tier("small", 50, 1.5, 0.6),
        tier("best", 200, 2.0, 0.01),
    ]
    assert kept(tiers, most=2) == ["fast", "best"]
    assert kept(tiers, most=1) == ["best"]
    assert kept(list(reversed(tiers)), most=1) == ["best"]


def test_random_families() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        tiers = [
            tier(
                f"t{i}",
                rng.choice((50, 60, 70, 100, 200)),
                rng.choice((0.5, 0.51, 0.52, 0.9, 1.0, 1.02, 1.05, 2.0)),
                rng.choice((0.001, 0.01, 0.02, 0.5, 1.0)),
                rng.random(),
            )
            for i in range(rng.randint(1, 9))
        ]
        most, min_top1 = rng.randint(1, 5), rng.choice((0.0, 0.5, 0.9))
        front, dropped = split_front(tiers, most=most, min_top1=min_top1)
        names = [found.name for found in front]
        assert 1 <= len(front) <= most
        assert sorted([*names, *dropped]) == sorted(found.name for found in tiers)
        assert not any(_beats(a, b) for a in front for b in front)
        assert min(found.kl for found in front) == min(found.kl for found in tiers)
        assert [found.seconds for found in front] == sorted(found.seconds for found in front)
        far = [found for found in front if found.top1 < min_top1]
        assert all(found.kl == min(t.kl for t in tiers) for found in far)
