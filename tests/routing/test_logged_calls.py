"""What a decision log can teach, and whom: never what was wrong, twice, or cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_factory import described_family, make_quality
from log_factory import Row, write_log

from tierwise.routing.decision_log import read_log
from tierwise.routing.logged_calls import (
    FEWEST_PROMPTS,
    HELD_OUT,
    RightCalls,
    choose_tier,
    make_syllabus,
    right_calls,
)
from tierwise.runtime.chat import Call, Message, Reply, Tool, ToolCall
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family
from tierwise.runtime.remote_tier import RemoteTier

WORDS = ("oak", "elm", "ash", "fir", "yew", "bay", "fig")


def ask(text: str) -> Call:
    return Call((Message("user", text),), max_tokens=20)


def found(folder: Path, *rows: Row, text: bool = True) -> RightCalls:
    return right_calls(read_log(write_log(folder / "log.sqlite", rows, text=text)))


@pytest.fixture
def family() -> Family:
    quality = make_quality(0.1)
    names = ("small", "middle", "large")
    made = described_family(*((name, at + 1, quality) for at, name in enumerate(names)))
    remote = RemoteTier(name="far", url="http://far/v1", model="m")
    return made.model_copy(update={"remotes": (remote,)})


def many(count: int, tiers: tuple[str, ...] = ("small", "large"), start: str = "of") -> list[Row]:
    return [
        Row(ask(f"{start} {WORDS[n % 7]} {WORDS[n // 7]}"), Reply(f"reply {n}"), tiers)
        for n in range(count)
    ]


# --- which replies are right ----------------------------------------------------------------------


def test_replies_count_that_stand_after_an_escalation_or_were_confirmed(tmp_path: Path) -> None:
    rows = [
        Row(ask("a"), Reply("stands")),
        Row(ask("b"), Reply("?"), problem="the reply repeats itself"),
        Row(ask("c"), Reply("?"), doubt="not sure enough"),
        Row(ask("d"), Reply("nobody asked further"), tiers=("small",)),
        Row(ask("e"), Reply("confirmed"), tiers=("small",), feedback=True),
        Row(ask("f"), Reply("odd, but confirmed"), problem="x", feedback=True),
        Row(ask("g"), Reply("refused"), feedback=False),
        Row(ask("h"), Reply("and then", finish_reason="length")),
        Row(ask("i"), Reply("the same tier again"), tiers=("small", "small")),
    ]
    calls = found(tmp_path, *rows)
    assert [(one.call.messages[0].content, one.reply.text) for one in calls.calls] == [
        ("a", "stands"),
        ("e", "confirmed"),
        ("f", "odd, but confirmed"),
    ]
    assert [one.doubted for one in calls.calls] == [("small",), (), ()]
    assert [one.confirmed for one in calls.calls] == [False, True, True]
    assert sum(calls.left_out.values()) == 6
    assert calls.left_out["were neither escalated to a reply that stands nor confirmed"] == 4


def test_a_reply_that_was_called_wrong_counts_from_no_row(tmp_path: Path) -> None:
    rows = [
        Row(ask("a"), Reply("wrong ")),
        Row(ask("a"), Reply("wrong"), feedback=False),
        Row(ask("b"), Reply("wrong")),
    ]
    assert [one.call.messages[0].content for one in found(tmp_path, *rows).calls] == ["b"]


def test_a_call_counts_once_and_what_was_confirmed_wins(tmp_path: Path) -> None:
    tool = Tool("now", "The time.", {"type": "object", "properties": {}})

    def turn(id_: str) -> Call:
        calls = (ToolCall("now", {}, id=id_),)
        told = Message("tool", "noon", tool_call_id=id_, tool_name="now")
        messages = (Message("user", "when"), Message("assistant", tool_calls=calls), told)
        return Call(messages, (tool,))

    rows = [
        Row(ask("a"), Reply("first")),
        Row(ask("a"), Reply("latest")),
        Row(ask("b"), Reply("confirmed"), feedback=True),
        Row(ask("b"), Reply("latest")),
        Row(turn("call1"), Reply("At noon.")),
        Row(turn("call2"), Reply("At noon!")),
    ]
    calls = found(tmp_path, *rows)
    assert [one.reply.text for one in calls.calls] == ["latest", "confirmed", "At noon!"]
    assert calls.left_out == {"are there already": 3}


# --- whom they teach ------------------------------------------------------------------------------


def test_the_tier_that_gave_way_most_often_is_chosen(tmp_path: Path, family: Family) -> None:
    rows = [*many(3, ("middle", "large")), *many(2, ("small", "middle"), "to")]
    assert choose_tier(found(tmp_path, *rows), family) == "middle"
    more = many(1, ("small", "far"), "by")
    assert choose_tier(found(tmp_path, *more), family) == "small"  # three each: the cheapest


def test_confirmed_calls_alone_choose_the_cheapest(tmp_path: Path, family: Family) -> None:
    row = Row(ask("a"), Reply("yes"), tiers=("middle",), feedback=True)
    assert choose_tier(found(tmp_path, row), family) == "small"


def test_calls_teach_only_cheaper_tiers(tmp_path: Path, family: Family) -> None:
    right = {"tiers": ("middle",), "feedback": True}
    own = [Row(ask(f"own {word}"), Reply("right"), **right) for word in WORDS]
    calls = found(tmp_path, *many(30, ("small", "far")), *many(9, ("small", "middle"), "to"), *own)
    plan = make_syllabus(calls, family, "middle")
    assert {one.tier for one in (*plan.learned, *plan.held_out)} == {"far"}
    assert len(plan.learned) + len(plan.held_out) == 30
    # What it did right itself is taught too, lest it forget; but for those that it is judged on.
    assert {one.tier for one in (*plan.reviewed, *plan.kept)} == {"middle"}
    assert len(plan.reviewed) + len(plan.kept) == len(WORDS)
    assert len(plan.kept) == round(len(WORDS) * HELD_OUT)
    groups = [{one.group for one in part} for part in (plan.reviewed, plan.kept, plan.held_out)]
    assert not groups[0] & (groups[1] | groups[2])
    below = make_syllabus(calls, family, "small")
    assert len(below.learned) == round((39 + len(WORDS)) * (1 - HELD_OUT)) and not below.reviewed
    # The best local tier learns from a remote one alone; nobody learns from a stranger.
    assert make_syllabus(calls, family, "large").learned
    strange = found(tmp_path / "other", *many(30, ("small", "stranger")))
    with pytest.raises(ConfigError, match="nothing in the log can teach a tier"):
        choose_tier(strange, family)
    with pytest.raises(ConfigError, match="there are 0"):
        make_syllabus(strange, family, "small")


def test_what_is_judged_on_shares_no_prompt_with_what_is_learned(
    tmp_path: Path, family: Family
) -> None:
    again = [Row(ask(f"of {a} {n}"), Reply(f"{a} {n}")) for a in WORDS for n in range(9)]
    plan = make_syllabus(found(tmp_path, *many(30), *again), family, "small")
    learned, held = ({one.group for one in part} for part in (plan.learned, plan.held_out))
    assert not learned & held and len(learned | held) == 37
    assert 0.25 < len(plan.held_out) / 93 < 0.42
    other = make_syllabus(found(tmp_path), family, "small", seed=1)
    assert {one.id for one in other.held_out} != {one.id for one in plan.held_out}


# --- what is said of too little -------------------------------------------------------------------


def test_too_few_calls_are_counted(tmp_path: Path, family: Family) -> None:
    rows = [*many(FEWEST_PROMPTS - 1), Row(ask("x"), Reply("?"), feedback=False)]
    with pytest.raises(ConfigError) as told:
        make_syllabus(found(tmp_path, *rows), family, "small")
    said = str(told.value)
    assert f"{FEWEST_PROMPTS} different prompts" in said and "there are 23" in said
    assert "of 24 logged calls, 23 have" in said and "1 have a reply that the user said" in said
    # Copies with other numbers are no further prompts.
    more = [Row(ask(f"of oak oak {n}"), Reply("so")) for n in range(9)]
    with pytest.raises(ConfigError, match="there are 23"):
        make_syllabus(found(tmp_path / "b", *rows[:-2], *more), family, "small")
    assert make_syllabus(found(tmp_path / "c", *many(FEWEST_PROMPTS)), family, "small").held_out


def test_a_log_without_text_says_how_to_have_it(tmp_path: Path, family: Family) -> None:
    calls = found(tmp_path, *many(30), text=False)
    assert calls.calls == () and calls.without_text == 30
    for refused in (
        lambda: choose_tier(calls, family),
        lambda: make_syllabus(calls, family, "small"),
    ):
        with pytest.raises(ConfigError, match=r"30 are without their text.*log_text=True"):
            refused()
