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
