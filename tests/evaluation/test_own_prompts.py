"""The user's own prompts: every check, right and wrong, and lines that are no prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tierwise.evaluation.own_prompts import read_prompts
from tierwise.runtime.chat import Reply, ToolCall
from tierwise.runtime.errors import ConfigError

ADD = {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return path


def called(**arguments: Any) -> Reply:
    return Reply(tool_calls=(ToolCall("add", arguments),), finish_reason="tool_calls")


@pytest.mark.parametrize(
    ("line", "right", "wrong"),
    [
        ({"expected": "Paris"}, Reply(" paris. "), Reply("It is Paris")),
        ({"expected": "Paris", "check": "contains"}, Reply("It is PARIS!"), Reply("Rome")),
        ({"expected": 1200}, Reply("So 3 and then 1,200."), Reply("1200, or perhaps 7")),
        ({"expected": {"a": [1, 2]}}, Reply('{"a": [1, 2.0]}'), Reply('{"a": [2, 1]}')),
        ({"expected": -5}, Reply("x = \N{MINUS SIGN}5"), Reply("x = 5")),
        ({"expected": 1_234_567}, Reply("1,234,567"), Reply("1,234,568")),
        ({"expected": 15}, Reply("in 10-15"), Reply("in 10 to -15")),
        ({"expected": 3}, Reply("1,2,3"), Reply("1,2,300")),
        ({"expected": 0.5}, Reply("about .5"), Reply("about 5")),
        ({"expected": 3}, Reply("release 1.2.3"), Reply("release 1.3.2")),
        ({"expected": 1e-7}, Reply("it is 1e-7"), Reply("it is 0")),
        ({"expected": True}, Reply("True."), Reply("false")),
        ({"expected": "-5"}, Reply("-5"), Reply("5")),
        ({"expected": "?", "check": "contains"}, Reply("why?"), Reply("because")),
        ({"expected": "5", "check": "contains"}, Reply("it is 5."), Reply("it is 15 or 5.1")),
        ({"expected": "^a+$", "check": "regex"}, Reply("aaa"), Reply("aab")),
        (
            {"expected": {"tool_calls": [{"name": "add", "args": {"a": 3}}]}, "tools": [ADD]},
            called(a=3.0),
            called(a=4),
        ),
        (
            {"expected": {"tool_calls": []}, "tools": [ADD]},
            Reply("none is needed"),
            called(a=3),
        ),
    ],
)
def test_checks(tmp_path: Path, line: dict[str, Any], right: Reply, wrong: Reply) -> None:
    (task,) = read_prompts(written(tmp_path / "mine.jsonl", {"prompt": "?", **line}))
    assert task.check(right) and not task.check(wrong)
    assert not task.check(Reply("not { JSON", tool_calls=(ToolCall("other", {}),)))


def test_calls_are_right_in_any_order(tmp_path: Path) -> None:
    calls = [{"name": "add", "args": {"a": one}} for one in (1, 2, 2)]
    line = {"prompt": "?", "tools": [ADD], "expected": {"tool_calls": calls}}
    (task,) = read_prompts(written(tmp_path / "mine.jsonl", line))

    def added(*values: int) -> Reply:
        return Reply(tool_calls=tuple(ToolCall("add", {"a": one}) for one in values))

    assert task.check(added(2, 1, 2)) and task.check(added(1, 2, 2))
    assert not any(map(task.check, (added(2, 1), added(1, 1, 2), added(1, 2, 2, 2))))


@pytest.mark.parametrize("check", ["contains", "number", "json", "regex"])
def test_a_reply_that_still_calls_is_no_answer(tmp_path: Path, check: str) -> None:
    line = {"prompt": "?", "tools": [ADD], "expected": 4, "check": check}
    (task,) = read_prompts(written(tmp_path / "mine.jsonl", line))
    assert task.check(Reply("4"))
    assert not task.check(Reply("4", tool_calls=(ToolCall("add", {"a": 2}),)))


def test_without_an_answer_the_reference_is_the_right_one(tmp_path: Path) -> None:
    lines = [{"prompt": "Tell me of Rome"}, {"prompt": "2?", "tools": [ADD]}]
    text, tool = read_prompts(written(tmp_path / "mine.jsonl", *lines))
    assert not text.check(Reply("Rome is old"))  # nobody knows yet
    text = text.against(Reply("Rome is the capital of Italy."))
    assert text.check(Reply("The capital of Italy is Rome")) and not text.check(
        Reply("I like Rome")
    )
    (count,) = read_prompts(written(tmp_path / "sum.jsonl", {"prompt": "2 + 2?"}))
    count = count.against(Reply("The answer is 4."))
    assert count.check(Reply("The answer is 4")) and count.check(Reply("The answer is four"))
    assert not count.check(Reply("The answer is 5.")) and count.check(
        Reply("2 more: the answer is 4")
    )
    tool = tool.against(called(a=2))
    assert tool.check(called(a=2)) and not tool.check(called(a=3)) and not tool.check(Reply("2"))
    given = read_prompts(written(tmp_path / "other.jsonl", {"prompt": "?", "expected": "x"}))[0]
    assert given.against(Reply("y")) is given


def test_groups_and_ids(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl", {"prompt": "a", "group": "g"}, {"prompt": "b"})
    path.write_text("\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert [(t.id, t.group) for t in read_prompts(path)] == [("m.jsonl-2", "g"), ("m.jsonl-3",) * 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "a"}\n{', "line 2: not JSON"),
        ('{"expected": 3}', "line 1: there are no messages"),
        ('{"prompt": "a", "check": "vibes"}', "no check 'vibes'"),
        ('{"prompt": "a", "expected": "two", "check": "number"}', "needs .* to be one"),
        ('{"prompt": "a", "expected": "(", "check": "regex"}', "no regular expression"),
        ('{"prompt": "a", "expected": "x", "check": "reference"}', 'Leave out "expected"'),
        ('{"prompt": "a", "expected": {"tool_calls": 3}}', "needs"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        read_prompts(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.jsonl"):
        read_prompts(tmp_path / "nothing.jsonl")
