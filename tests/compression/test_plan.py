"""Which tiers are worth making, from exact sizes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny_gguf

from tierwise.compression.plan import (
    LADDER,
    MIN_STEP,
    PROTECTED,
    Plan,
    choose_layers,
    plan_tiers,
)
from tierwise.compression.quantize import plan_quantization, quantize
from tierwise.compression.recipe import BuildConfig, TierRecipe
from tierwise.compression.tier_source import TierSource, base_source
from tierwise.runtime.errors import ConfigError


@pytest.fixture(scope="module")
def deep_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten layers, so that a tenth of them is one."""
    path = tmp_path_factory.mktemp("models") / "deep.gguf"
    return write_tiny_gguf(path, layers=10, width=256, heads=4, ffn=256)


def plan(path: Path, layers: int, *, file_type: str = "F16", **options: object) -> Plan:
    options = {"effort": "thorough", **options}
    base = base_source(path, "0" * 64, layers)
    return plan_tiers([base], file_type=file_type, config=BuildConfig.make(**options))


def recipes(*values: dict[str, object]) -> tuple[TierRecipe, ...]:
    return tuple(TierRecipe.model_validate(value) for value in values)


def test_the_ladder_is_planned_with_one_pruned_tier(deep_gguf: Path) -> None:
    found = plan(deep_gguf, 10, tiers=12)
    names = [candidate.name for candidate in found.candidates]
    assert names[0] == "q8_0" and names[-1] == "d9-q8_0"
    everything = {*names, *found.skipped}
    assert everything == {*(name.lower() for name in LADDER), "d9-q8_0"}
    assert len(everything) == len(names) + len(found.skipped)  # nothing is in both
    for candidate in found.candidates[:-1]:
        assert candidate.bytes == plan_quantization(deep_gguf, candidate.quantization).bytes
        assert (candidate.prune_count, candidate.pruned_layers) == (0, ())
    pruned = found.candidates[-1]
    assert (pruned.prune_count, pruned.pruned_layers) == (1, None)
    assert pruned.bytes == plan_quantization(deep_gguf, "Q8_0", pruned_layers=(5,)).bytes


def test_pruning_without_recovery_is_for_thorough_builds_without_students(deep_gguf: Path) -> None:
    for options in ({"effort": "normal"}, {"distill": {}}):
        found = plan(deep_gguf, 10, tiers=12, **options)
        everything = (*(one.name for one in found.candidates), *found.skipped)
        assert not any(name.startswith("d9") for name in everything)


def test_students_bring_the_best_type_and_the_one_they_were_trained_for(
    deep_gguf: Path, wide_gguf: Path
) -> None:
    base = base_source(deep_gguf, "0" * 64, 10)
    sources = [
        base,
        TierSource("d8", wide_gguf, "1" * 64, 6, pruned_layers=(2, 3)),
        TierSource("d6", wide_gguf, "2" * 64, 6, pruned_layers=(2, 3, 4, 5), trained_for="Q4_0"),
    ]
    config = BuildConfig.make(distill={})
    found = plan_tiers(sources, file_type="F16", config=config)
    taught = [(one.name, one.source, one.quantization) for one in found.candidates if one.source]
    assert taught == [
        ("d8-q8_0", "d8", "Q8_0"),
        ("d6-q8_0", "d6", "Q8_0"),
        ("d6-q4_0", "d6", "Q4_0"),
    ]
    pinned = recipes({"source": "d6", "quantization": "Q6_K"}, {"quantization": "Q8_0"})
    config = BuildConfig.make(candidates=pinned)
    found = plan_tiers(sources, file_type="F16", config=config)
    assert [one.name for one in found.candidates] == ["d6-q6_k", "q8_0"]


def test_overrides_count_in_the_size(deep_gguf: Path) -> None:
    plain = plan(deep_gguf, 10, candidates=recipes({"quantization": "Q4_0"})).candidates[0]
    larger = {"quantization": "Q4_0", "overrides": {"blk.3.ffn_down.weight": "q8_0"}}
    found = plan(deep_gguf, 10, candidates=recipes(larger)).candidates[0]
    assert found.overrides == {"blk.3.ffn_down.weight": "Q8_0"} and found.bytes > plain.bytes


def test_steps_that_save_little_are_skipped(deep_gguf: Path, tiny_gguf: Path) -> None:
    kept = [c for c in plan(deep_gguf, 10, tiers=12).candidates if not c.prune_count]
    for above, below in itertools.pairwise(kept):
        assert below.bytes <= above.bytes * (1 - MIN_STEP)
    # K-quants of a narrow model are mostly larger types in disguise.
    narrow = plan(tiny_gguf, 4, tiers=12)
    assert "hardly less than" in narrow.skipped["q6_k"]
    assert " MB " in narrow.skipped["q6_k"]


def test_few_tiers_are_spread_over_the_sizes(deep_gguf: Path) -> None:
    found = plan(deep_gguf, 10, tiers=2)
    names = [candidate.name for candidate in found.candidates]
    assert len(names) == 4
    everything = [c.name for c in plan(deep_gguf, 10, tiers=12).candidates]
    assert names[0] == everything[0] and names[-2:] == everything[-2:]
    reasons = {found.skipped[name] for name in everything if name not in names}
    assert reasons == {"enough other sizes were tried; name it in a recipe"}


def test_one_tier_is_the_best_type(deep_gguf: Path) -> None:
    assert next(c.name for c in plan(deep_gguf, 10, tiers=1).candidates) == "q8_0"


def test_a_shallow_model_has_no_pruned_tier(tiny_gguf: Path) -> None:
    found = plan(tiny_gguf, 4, tiers=12)
    assert not any(candidate.prune_count for candidate in found.candidates)
    names = [candidate.name for candidate in found.candidates]
    assert len(set(names)) == len(names) and not set(names) & set(found.skipped)


def test_a_quantized_base_is_a_tier_itself(wide_gguf: Path, tmp_path: Path) -> None:
    base = tmp_path / "q5_k_m.gguf"
    quantize(wide_gguf, base, "Q5_K_M", threads=1)
    found = plan(base, 6, file_type="Q5_K_M", tiers=12)
    copies = [c for c in found.candidates if c.quantization == "copy"]
    assert [(c.name, c.bytes) for c in copies] == [("q5_k_m", base.stat().st_size)]
    assert len([c for c in found.candidates if c.name == "q5_k_m"]) == 1
    # A base in full precision is none: it is where the others come from.
    assert all(c.quantization != "copy" for c in plan(wide_gguf, 6, tiers=12).candidates)


def test_the_limit_skips_and_says_so(deep_gguf: Path) -> None:
    sizes = {c.name: c.bytes for c in plan(deep_gguf, 10, tiers=12).candidates}
    limit = sizes["q5_k_m"]
    found = plan(deep_gguf, 10, tiers=12, max_bytes=limit)
    assert all(candidate.bytes <= limit for candidate in found.candidates)
    assert "is over the limit of" in found.skipped["q8_0"]
    assert found.candidates[0].name == "q5_k_m"


def test_a_limit_that_nothing_fits_names_the_smallest(deep_gguf: Path) -> None:
    smallest = plan_quantization(deep_gguf, "Q3_K_M").bytes
    with pytest.raises(ConfigError, match=rf"max_bytes=1,000: .* q3_k_m, takes {smallest:,} bytes"):
        plan(deep_gguf, 10, max_bytes=1000)


def test_pinned_candidates_are_all_planned(deep_gguf: Path) -> None:
    found = plan(
        deep_gguf,
        10,
        tiers=1,
        candidates=recipes(
            {"quantization": "Q8_0"},
            {"quantization": "q6_k", "name": "mine"},
            {"quantization": "Q4_0", "prune": 0.3},
            {"quantization": "Q4_0", "prune": (7, 3, 7)},
            {"quantization": "copy", "name": "whole"},
        ),
    )
    assert found.skipped == {}
    made = [(c.name, c.quantization, c.prune_count, c.pruned_layers) for c in found.candidates]
    assert made == [
        ("q8_0", "Q8_0", 0, ()),
        ("mine", "Q6_K", 0, ()),
        ("d7-q4_0", "Q4_0", 3, None),
        ("d8-q4_0", "Q4_0", 2, (3, 7)),
        ("whole", "copy", 0, ()),
    ]
    assert found.candidates[-1].bytes == deep_gguf.stat().st_size


def test_layers_that_are_not_there_are_refused(deep_gguf: Path) -> None:
    wrong = recipes({"quantization": "Q8_0", "prune": (3, 10, -1)})
    with pytest.raises(ConfigError, match=r"\[10, -1\]; the base has 0 to 9"):
        plan(deep_gguf, 10, candidates=wrong)


def test_copies_cannot_be_pruned(deep_gguf: Path) -> None:
    with pytest.raises(ConfigError, match="'copy' cannot be pruned"):
        plan(deep_gguf, 10, candidates=recipes({"quantization": "copy", "prune": 0.2}))


def test_names_must_differ(deep_gguf: Path) -> None:
    twice = recipes({"quantization": "Q8_0"}, {"quantization": "Q4_0", "name": "q8_0"})
    with pytest.raises(ConfigError, match="more than one tier called 'q8_0'"):
        plan(deep_gguf, 10, candidates=twice)


# --- Layers ---------------------------------------------------------------------------------------


def test_layers_are_chosen_by_influence() -> None:
    influence = np.array([np.nan, 0.1, 0.5, 0.2, 0.6, 0.3, 0.7, 0.9, 0.05, np.nan])
    assert choose_layers(influence, 0) == ()
    assert choose_layers(influence, 1) == (3,)  # 1 and 8 are protected
    assert choose_layers(influence, 2) == (3, 5)


def test_the_least_influential_are_chosen_and_ends_are_protected() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        layers = int(rng.integers(6, 40))
        influence = rng.random(layers)
        influence[[0, -1]] = np.nan
        inner = range(PROTECTED, layers - PROTECTED)
        for count in range(1, len(inner)):
            chosen = choose_layers(influence, count)
            assert len(set(chosen)) == len(chosen) == count
            assert chosen == tuple(sorted(chosen))
            assert set(chosen) <= set(inner)
            left = [influence[layer] for layer in inner if layer not in chosen]
            assert max(influence[list(chosen)]) <= min(left)
