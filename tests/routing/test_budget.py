"""What the user grants: sizes as text, mistakes named, never changed."""

from __future__ import annotations

import math

import pytest
from pydantic import BaseModel, ValidationError

from tierwise.routing.budget import Budget
from tierwise.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "count"),
    [("500MB", 500_000_000), ("2 GiB", 2 * 2**30), ("1.5GB", 1_500_000_000), (1000, 1000)],
)
def test_memory_may_be_text(text: str | int, count: int) -> None:
    assert Budget(memory=text).memory == count


def test_nothing_is_limited_unless_asked() -> None:
    budget = Budget()
    assert budget.memory is budget.seconds_per_call is budget.seconds_to_first_token is None
    assert budget.reply_tokens is None
    assert 0 < budget.quality < 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory", "a lot"),
        ("memory", 0),
        ("memory", "-1GB"),
        ("memory", "1.2.3GB"),
        ("memory", "."),
        ("seconds_per_call", 0),
        ("seconds_per_call", -1.0),
        ("seconds_per_call", math.nan),
        ("seconds_to_first_token", 0),
        ("reply_tokens", 0),
        ("reply_tokens", 1.5),
        ("quality", 1.1),
        ("quality", -0.1),
        ("quality", math.nan),
        ("quality", "high"),
        ("memroy", 1),
        ("joules_per_call", 0),
        ("price_per_second", -0.1),
        ("price_per_joule", math.inf),
        ("price_per_gigabyte", "dear"),
        ("power", "turbo"),
        ("mean_seconds", 0),
        ("mean_quality", 1.1),
    ],
)
def test_a_bad_value_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Budget(**{field: value})
    assert f"budget {field!r} cannot be {value!r}" in str(caught.value)


def test_a_bad_value_is_named_inside_another_model_too() -> None:
    class Settings(BaseModel):
        budget: Budget

    assert Settings(budget={"memory": "1KB"}).budget.memory == 1000
    with pytest.raises((ConfigError, ValidationError), match="quality"):
        Settings(budget={"quality": 2})


@pytest.mark.parametrize(
    ("values", "other"),
    [
        ({"mean_seconds": 1, "mean_quality": 0.9}, "mean_quality"),
        ({"mean_seconds": 1, "price_per_second": 0.1}, "price_per_second"),
        ({"mean_quality": 0.9, "price_per_joule": 0.1}, "price_per_joule"),
        ({"guarantee": 0.9, "price_per_gigabyte": 0.1}, "price_per_gigabyte"),
        ({"guarantee": 0.9, "mean_seconds": 1}, "mean_seconds"),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict[str, float], other: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot have {other}: .* Leave one out"):
        Budget(**values)


def test_beside_an_average_there_is_no_floor_unless_it_is_given() -> None:
    assert Budget(mean_seconds=1).quality == Budget(mean_quality=0.9).quality == 0.0
    assert Budget(mean_seconds=1, quality=0.8).quality == 0.8
    assert Budget(mean_seconds=None).quality == Budget().quality
    assert Budget(mean_seconds=1).by_mean and not Budget().by_mean


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Budget().quality = 0.5


def test_time_that_has_passed_is_taken_off_and_nothing_else() -> None:
    budget = Budget(memory="1GB", seconds_per_call=10, seconds_to_first_token=2, quality=0.5)
    left = budget.after(3)
    assert left.seconds_per_call == 7
    assert left.seconds_to_first_token is not None and 0 < left.seconds_to_first_token < 1e-3
    assert (left.memory, left.quality) == (budget.memory, budget.quality)
    assert Budget().after(100) == Budget()
    energy = Budget(joules_per_call=50)
    assert energy.after(3, 20).joules_per_call == 30
    assert 0 < (energy.after(3, 60).joules_per_call or 0) < 1e-3


def test_the_best_and_the_cheapest_keep_the_limits() -> None:
    dear = Budget(seconds_per_call=5, price_per_second=0.1, price_per_joule=0.01, quality=0.8)
    assert dear.for_the_best() == dear.model_copy(update={"quality": 1.0})
    assert dear.for_the_cheapest() == Budget(seconds_per_call=5, quality=0.0)
    kept = Budget(memory="1GB", mean_quality=0.9)
    assert kept.for_the_best() == Budget(memory="1GB", quality=1.0)
    assert Budget(guarantee=0.9).for_the_cheapest() == Budget(quality=0.0)
