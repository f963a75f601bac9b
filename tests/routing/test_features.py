"""Features: what each column counts, that they are stable, and that caches change nothing."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tierwise.evaluation.task_generator import generate_tasks
from tierwise.routing.difficulty import _leaves, structural_difficulty
from tierwise.routing.features import (
    COUNTS,
    PLAIN_SPEC,
    VERSION,
    Features,
    FeatureSpec,
    call_features,
    text_features,
)
from tierwise.routing.features_schema import SCHEMA_COLUMNS, count_schema, count_tools
from tierwise.routing.features_text import (
    LONGEST,
    TEXT_COLUMNS,
    count_text,
    hash_characters,
    hash_words,
    text_columns,
)
from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.errors import ConfigError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"type": "string", "enum": ["C", "F", "K"]},
        "places": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                "required": ["lat", "lon"],
            },
        },
        "when": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
    },
    "required": ["city"],
}
WEATHER = Tool("get_weather", "Forecast of the weather for a city.", SCHEMA)
MAIL = Tool("sendMail", "Sends a letter to somebody.", {"type": "object", "properties": {}})


def value(call: Call, name: str, prompt: tuple[int, ...] = ()) -> float:
    return float(call_features(call, prompt)[COUNTS.index(name)])


def count(call: Call, name: str) -> int:
    return round(math.expm1(value(call, name)))


def ask(*texts: str, **more: Any) -> Call:
    return Call(tuple(Message("user", text) for text in texts), **more)


def test_a_row_has_the_width_and_type_that_its_spec_says() -> None:
    row = call_features(ask("Hello"))
    assert row.shape == (PLAIN_SPEC.width,) and row.dtype == np.float32
    assert PLAIN_SPEC.counts == len(COUNTS) == len(set(COUNTS)) and PLAIN_SPEC.version == VERSION
    assert np.isfinite(row).all()


def test_of_a_schema() -> None:
    counted = dict(zip(SCHEMA_COLUMNS, count_schema(SCHEMA), strict=True))
    assert counted.pop("depth") == 3  # argument, item, argument of the item
    assert {name: round(math.expm1(x)) for name, x in counted.items()} == {
        "leaves": 7,
        "required": 3,
        "optional": 4,
        "listed_values": 3,
        "largest_list": 3,
        "texts": 3,
        "numbers": 3,
        "flags": 0,
        "arrays": 1,
        "objects": 2,
        "alternatives": 2,
    }


@pytest.mark.parametrize("schema", [{}, {"type": ["string", "null"]}, {"items": True}])
def test_odd_schemas_are_counted_too(schema: dict[str, Any]) -> None:
    assert all(map(math.isfinite, count_schema(schema)))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": ["no", "mapping"], "required": "city", "enum": 3, "anyOf": {"type": "x"}},
        {"properties": {"a": None, "b": 3}, "items": [1, 2], "type": 5},
    ],
)
def test_malformed_schemas_do_not_raise(schema: dict[str, Any]) -> None:
    assert len(count_schema(schema)) == len(SCHEMA_COLUMNS)


def test_a_schema_that_nests_without_end_is_cut_off() -> None:
    endless: dict[str, Any] = {"type": "array"}
    endless["items"] = endless
    assert count_schema(endless)[0] < 100


def test_leaves_are_those_of_the_structural_difficulty() -> None:
    for task in generate_tasks(48, seed=3):
        for tool in task.call.tools:
            leaves = count_schema(tool.parameters)[SCHEMA_COLUMNS.index("leaves")]
            assert round(math.expm1(leaves)) == _leaves(tool.parameters)
        assert value(task.call, "difficulty") == pytest.approx(structural_difficulty(task.call))


def test_of_tools() -> None:
    call = ask("How is the weather?", tools=(WEATHER, MAIL))
    assert count(call, "tools") == 2 and count(call, "all_leaves") == 7
    assert count(call, "tool_leaves") == 7 and value(call, "tool_depth") == 3
    assert count(call, "description_words") == 12 and value(call, "forms") == 1
    assert value(call, "likeness") == 0
    assert value(ask("Hi"), "tools") == value(ask("Hi"), "tool_leaves") == 0


def test_twins_are_alike_and_one_tool_is_like_none() -> None:
    news = Tool("getNews", "News for the city.", {})  # get, news, for, the, city
    assert count_tools((WEATHER, news, MAIL)).columns[1] == pytest.approx(4 / 7)
    twin = Tool("weather_get", "For a city the forecast of weather", {})
    assert count_tools((WEATHER, twin)).columns[1] == 1.0
    assert count_tools((WEATHER,)).columns[1] == 0.0


def test_how_well_tools_match_the_request() -> None:
    request = "weather city lunch days"  # 3 of 4 in the tool's name, description and arguments
    call = ask(request, tools=(WEATHER, MAIL))
    assert value(call, "best_match") == value(call, "match_gap") == pytest.approx(3 / 4)
    both = ask(request, tools=(WEATHER, WEATHER))
    assert value(both, "match_gap") == 0
    assert value(ask("", tools=(WEATHER,)), "best_match") == 0


def test_only_tools_that_may_be_used_count() -> None:
    tools = (WEATHER, MAIL)
    assert count(ask("x", tools=tools, tool_choice="none"), "tools") == 0
    named = ask("x", tools=tools, tool_choice="sendMail")
    assert count(named, "tools") == 1 and value(named, "tool_is_named") == 1
    assert value(named, "must_call") == 1
    assert value(ask("x", tools=tools, tool_choice="any"), "must_call") == 1
    assert value(ask("x", tools=tools), "must_call") == 0


def test_of_the_response_schema() -> None:
    call = ask("x", response_schema=SCHEMA)
    assert value(call, "response_schema") == 1 and count(call, "response_leaves") == 7
    must = ask("x", response_schema=SCHEMA, tools=(MAIL,), tool_choice="any")
    assert value(must, "response_schema") == 0  # the reply will be a call
    assert value(ask("x", choices=("yes", "no")), "constrained") == 1
    assert value(ask("x", regex="a+"), "constrained") == 1


def test_of_the_conversation() -> None:
    asked = Message("assistant", tool_calls=(ToolCall("f", {}), ToolCall("g", {})))
    bad = Message("tool", "no such city", tool_failed=True)
    good = Message("tool", "12 degrees")
    call = Call((Message("system", "s"), Message("user", "One"), asked, bad, good))
    assert (count(call, "messages"), count(call, "turn"), count(call, "tool_calls")) == (5, 1, 2)
    assert count(call, "results_since_request") == 2
    assert count(call, "failures_since_request") == count(call, "failures") == 1
    assert count(call, "last_result_characters") == 10
    later = call.with_messages(Message("assistant", "12"), Message("user", "Two?"))
    assert (count(later, "turn"), count(later, "results_since_request")) == (2, 0)
    assert (count(later, "failures_since_request"), count(later, "failures")) == (0, 1)
    assert count(later, "last_result_characters") == 0
    assert value(later, "prompt_tokens", (1, 2, 3)) == pytest.approx(math.log(4))


def test_of_a_text() -> None:
    text = 'Tom has 12 apples and 1,250 "pears". He eats 12!\nHow many?'
    counted = dict(zip(TEXT_COLUMNS, count_text(text).tolist(), strict=True))
    whole = {
        "characters": len(text),
        "words": 9,
        "lines": 1,
        "sentences": 3,
        "longest_sentence_words": 7,
        "last_sentence_words": 2,
        "numbers": 3,
        "distinct_numbers": 2,
        "longest_number_digits": 4,
        "questions": 1,
        "quotes": 2,
        "brackets": 0,
        "code_marks": 0,
        "money_and_percent": 0,
    }
    assert {name: round(math.expm1(counted[name])) for name in whole} == whole
    assert counted["word_characters"] == pytest.approx((3 + 3 + 6 + 3 + 5 + 2 + 4 + 3 + 4) / 9)
    assert counted["distinct_word_share"] == 1.0
    assert counted["digit_share"] == pytest.approx(8 / len(text))
    assert counted["capital_share"] == pytest.approx(3 / len(text))
    assert counted["foreign_share"] == 0 and counted["punctuation_share"] > 0


def test_code_and_other_scripts_are_seen() -> None:
    code = dict(zip(TEXT_COLUMNS, count_text("```x = {a[0]: f(b);}```"), strict=True))
    assert code["code_marks"] > math.log(8) and code["brackets"] == pytest.approx(math.log(5))
    kana = dict(zip(TEXT_COLUMNS, count_text("天気はどうですか。"), strict=True))
    assert kana["foreign_share"] == 1.0 and kana["sentences"] == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "text", ["", " ", "a", "\ud800", "\0\n", "9" * 5000, "😀" * 5000, "é" * 10, "1.2.3"]
)
def test_every_text_has_a_row(text: str) -> None:
    assert np.isfinite(text_features(text)).all()


def test_an_empty_text_has_no_words_and_no_characters() -> None:
    assert not hash_words("").any() and not count_text("").any()
    assert not hash_characters("").any()


def test_case_and_digits_do_not_change_n_grams_but_order_does() -> None:
    assert np.array_equal(hash_words("Take 15 eggs"), hash_words("take 27 EGGS"))
    assert np.array_equal(hash_characters("Take 15 eggs"), hash_characters("take 27 EGGS"))
    a, b = hash_words("dog bites man"), hash_words("man bites dog")
    assert not np.array_equal(a, b) and a @ b > 0  # the single words are the same
    assert not np.array_equal(hash_characters("abcdef"), hash_characters("abdcef"))


def test_counts_are_damped() -> None:
    once, often = hash_words("egg"), hash_words("egg " * 7)
    at = int(np.flatnonzero(once)[0])
    assert abs(once[at]) == pytest.approx(math.log(2))
    assert abs(often[at]) == pytest.approx(math.log(8)) and np.sign(often[at]) == np.sign(once[at])


def test_hashes_spread_over_all_columns_and_both_signs() -> None:
    texts = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
    used = np.array([hash_words(text) for text in texts])
    assert (used != 0).any(axis=0).mean() > 0.35  # 512 words in 1024 columns
    assert abs(np.sign(used).sum()) < 4 * math.sqrt(len(texts))


def test_hashes_are_the_same_for_ever() -> None:
    """Else every stored calibration would be worth nothing: a change needs a new `VERSION`."""
    row = text_features("Plan 3 days in Zürich, then e-mail me <b>the</b> route!")
    signs = np.sign(row[PLAIN_SPEC.counts :]).astype(np.int8)
    assert hashlib.sha256(signs.tobytes()).hexdigest()[:16] == "49757fa849bb422d"


def test_of_long_texts_both_ends_are_read() -> None:
    middle = "lorem ipsum " * 100_000
    began = time.thread_time()
    a = text_features(f"alpha {middle} omega")
    assert time.thread_time() - began < 2
    b = text_features(f"alpha {middle} other")
    c = text_features(f"other {middle} omega")
    assert not np.array_equal(a, b) and not np.array_equal(a, c)
    at = COUNTS.index("request_characters")
    assert math.expm1(a[at]) == pytest.approx(len(middle) + 12, rel=1e-3)
    inside = text_features(f"alpha {middle}{'x' * LONGEST}{middle} omega")
    assert np.array_equal(inside[at + 1 :], a[at + 1 :])  # only its length is seen


def test_caches_change_nothing() -> None:
    features = Features()
    calls = [task.call for task in generate_tasks(60, seed=5)]
    first = features.rows(calls)
    assert np.array_equal(features.rows(calls[::-1])[::-1], first)
    assert np.array_equal(Features().rows(calls), first)
    copies = [replace(c, tools=tuple(replace(t) for t in c.tools)) for c in calls]
    assert np.array_equal(features.rows(copies), first)


def test_what_is_remembered_cannot_be_spoiled() -> None:
    with pytest.raises(ValueError, match="read-only"):
        text_columns("Hello")[0] = 1
    row = text_features("Hello")
    row[:] = 0
    assert text_features("Hello").any()


def test_a_text_is_a_call_with_one_turn() -> None:
    assert np.array_equal(text_features("How are you?"), call_features(ask("How are you?")))
    assert np.array_equal(
        text_features("B")[-2048:], call_features(ask("A", "B"))[-2048:]
    )  # the last turn is the request


def test_no_calls_make_no_rows() -> None:
    assert Features().rows([]).shape == (0, PLAIN_SPEC.width)


def test_features_of_another_kind_are_refused() -> None:
    PLAIN_SPEC.check(PLAIN_SPEC)
    for other in (
        FeatureSpec("tierwise-features-0", PLAIN_SPEC.counts, PLAIN_SPEC.hashed),
        FeatureSpec(VERSION, PLAIN_SPEC.counts + 1, PLAIN_SPEC.hashed),
        FeatureSpec(VERSION, PLAIN_SPEC.counts, (512, 512)),
    ):
        with pytest.raises(ConfigError, match="Calibrate again"):
            other.check(PLAIN_SPEC)
