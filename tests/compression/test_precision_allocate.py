"""Allocation against every possible allocation of small problems."""

from __future__ import annotations

import itertools
import random

import pytest

from tierwise.compression.precision.allocate import Choice, allocate
from tierwise.runtime.errors import ConfigError

Choices = dict[str, list[Choice]]


def drawn(seed: int, tensors: int = 5, types: int = 4) -> Choices:
    """Costs and losses without any order: some types are beaten, some lie above the hull."""
    rng = random.Random(seed)
    return {
        f"t{n}": [
            Choice(f"type{k}", rng.randint(1, 40), round(rng.expovariate(1.0), 3))
            for k in range(types)
        ]
        for n in range(tensors)
    }


def totals(taken: dict[str, Choice]) -> tuple[float, float]:
    return sum(c.cost for c in taken.values()), sum(c.loss for c in taken.values())


def best(choices: Choices, budget: float) -> float:
    """The least loss of all allocations."""
    losses = [
        sum(c.loss for c in combination)
        for combination in itertools.product(*choices.values())
        if sum(c.cost for c in combination) <= budget
    ]
    return min(losses)


@pytest.mark.parametrize("seed", range(30))
def test_it_is_near_the_best_there_is(seed: int) -> None:
    """Five tensors are the worst case: one type more or less is a fifth of the budget."""
    choices = drawn(seed)
    least = sum(min(c.cost for c in options) for options in choices.values())
    for budget in (least, least + 13, least + 40, least + 1000):
        cost, loss = totals(allocate(choices, budget=budget))
        assert cost <= budget
        assert loss <= best(choices, budget) * 1.5 + 1e-9
    assert loss == pytest.approx(best(choices, least + 1000))


def test_it_is_nearly_always_the_best_there_is() -> None:
    hits = 0
    for seed in range(60):
        choices = drawn(seed)
        budget = sum(min(c.cost for c in options) for options in choices.values()) + 30
        hits += totals(allocate(choices, budget=budget))[1] <= best(choices, budget) + 1e-9
    assert hits >= 55


def test_many_tensors_leave_no_room_unused() -> None:
    choices = drawn(1, tensors=200, types=12)
    least = sum(min(c.cost for c in options) for options in choices.values())
    budgets = [least * share for share in (1.1, 1.3, 1.6, 2.0)]
    found = [totals(allocate(choices, budget=budget)) for budget in budgets]
    assert all(cost > budget - 2 for (cost, _), budget in zip(found, budgets, strict=True))
    assert [loss for _, loss in found] == sorted((loss for _, loss in found), reverse=True)


def test_the_order_of_choices_does_not_matter() -> None:
    choices = drawn(3, tensors=30, types=8)
    shuffled = {name: choices[name][::-1] for name in sorted(choices, reverse=True)}
    assert allocate(choices, budget=300) == allocate(shuffled, budget=300)


def test_the_tensor_that_matters_gets_the_bits() -> None:
    types = (("Q4_0", 4.5, 1.0), ("Q8_0", 8.5, 0.01))
    choices = {
        name: [Choice(kind, cost, loss * weight) for kind, cost, loss in types]
        for name, weight in (("a", 1.0), ("b", 100.0), ("c", 1.0))
    }
    taken = allocate(choices, budget=17.5)
    assert {name: choice.type for name, choice in taken.items()} == {
        "a": "Q4_0",
        "b": "Q8_0",
        "c": "Q4_0",
    }


def test_a_budget_below_the_cheapest_is_refused() -> None:
    choices = drawn(0)
    least = sum(min(c.cost for c in options) for options in choices.values())
    with pytest.raises(ConfigError, match=f"take {least:,.6g} together"):
        allocate(choices, budget=least - 1)


def test_a_tensor_without_choices_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one type"):
        allocate({"a": []}, budget=10)


def test_losses_that_rounding_made_negative_end_it_all_the_same() -> None:
    choice = Choice("Q8_0", 1, -1e-9)
    assert allocate({"a": [choice]}, budget=1) == {"a": choice}
