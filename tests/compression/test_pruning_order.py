"""The greedy order of layers: nested, guarded, resumable, and measured where it matters."""

from __future__ import annotations

import itertools
import math

import pytest

from tierwise.compression.pruning.order import Removal, greedy_order
from tierwise.runtime.errors import ConfigError

LAYERS = 8
COST = (9.0, 4.0, 1.0, 3.0, 1.5, 6.0, 2.0, 9.0)


def influence(gone: tuple[int, ...]) -> dict[int, float]:
    return {layer: COST[layer] for layer in range(LAYERS) if layer not in gone}


def divergence(gone: tuple[int, ...]) -> float:
    """Neighbours that both go cost extra: what influence does not see."""
    pairs = sum(abs(a - b) == 1 for a, b in itertools.combinations(gone, 2))
    return sum(COST[layer] for layer in gone) + 10 * pairs


def test_fewer_layers_are_the_start_of_more() -> None:
    whole = greedy_order(LAYERS, 6, influence, divergence)
    for count in range(7):
        assert greedy_order(LAYERS, count, influence, divergence) == whole[:count]
    assert [removal.layer for removal in whole[:3]] == [2, 4, 6]
    assert [removal.kl for removal in whole[:3]] == [1.0, 2.5, 4.5]
    assert [removal.influence for removal in whole[:3]] == [1.0, 1.5, 2.0]


@pytest.mark.parametrize("protected", [0, 1, 2, 3])
def test_protected_layers_stay(protected: int) -> None:
    most = LAYERS - 2 * protected
    order = greedy_order(LAYERS, most, influence, divergence, protected=protected)
    gone = {removal.layer for removal in order}
    assert gone == set(range(protected, LAYERS - protected))
    with pytest.raises(ConfigError, match=rf"{most + 1} layers shall go.*0 to {most} may"):
        greedy_order(LAYERS, most + 1, influence, divergence, protected=protected)


def test_only_the_shortlist_is_measured() -> None:
    asked: list[tuple[int, ...]] = []

    def counted(gone: tuple[int, ...]) -> float:
        asked.append(gone)
        return divergence(gone)

    greedy_order(LAYERS, 2, influence, counted, shortlist=2)
    assert asked == [(2,), (4,), (2, 4), (2, 6)]


def test_what_was_found_before_is_not_searched_again() -> None:
    whole = greedy_order(LAYERS, 5, influence, divergence)
    fresh: list[Removal] = []
    again = greedy_order(LAYERS, 5, influence, divergence, known=whole[:3], found=fresh.append)
    assert again == whole
    assert tuple(fresh) == whole[3:]

    def never(_gone: tuple[int, ...]) -> float:
        raise AssertionError

    assert greedy_order(LAYERS, 2, influence, never, known=whole) == whole[:2]


@pytest.mark.parametrize("layers", [(1, 1), (0,), (7,), (12,)])
def test_what_was_found_for_another_model_is_refused(layers: tuple[int, ...]) -> None:
    known = [Removal(layer, 0.1, 0.1) for layer in layers]
    with pytest.raises(ConfigError, match="do not fit a model of 8 layers"):
        greedy_order(LAYERS, 4, influence, divergence, known=known)


def test_broken_candidates_are_not_chosen() -> None:
    def broken(gone: tuple[int, ...]) -> float:
        return math.nan if 2 in gone else divergence(gone)

    assert [r.layer for r in greedy_order(LAYERS, 2, influence, broken)] == [4, 6]

    def blind(gone: tuple[int, ...]) -> dict[int, float]:
        return influence(gone) | {2: math.nan}

    assert [r.layer for r in greedy_order(LAYERS, 1, blind, divergence, shortlist=1)] == [4]


def test_progress_rises_to_one() -> None:
    seen: list[tuple[str, float]] = []
    greedy_order(LAYERS, 6, influence, divergence, progress=lambda *step: seen.append(step))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert seen[0][0] == "without layer 2: KL 1.0000"


@pytest.mark.parametrize(("name", "value"), [("protected", -1), ("shortlist", 0)])
def test_senseless_options_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{name} (is )?{value}"):
        greedy_order(LAYERS, 2, influence, divergence, **{name: value})
