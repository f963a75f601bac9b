"""The leaderboard's questions and rules, on a few questions of our own in its format."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_scripted_gguf

from tierwise.evaluation.bfcl import CATEGORIES, BfclTask, Category, load_bfcl, schema_of
from tierwise.evaluation.bfcl_rules import right_call
from tierwise.evaluation.success import run_suite
from tierwise.runtime.chat import Reply, ToolCall
from tierwise.runtime.errors import ConfigError, MissingExtraError
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.schemas import check_schema

PARAMETERS = {
    "type": "dict",
    "properties": {
        "city": {"type": "string", "description": "Where."},
        "days": {"type": "integer", "description": "How many.", "default": 1},
        "level": {"type": "float", "description": "Metres.", "optional": True},
    },
    "required": ["city"],
}
FORECAST = {"name": "weather.forecast", "description": "Tells it.", "parameters": PARAMETERS}
TIDES = {"name": "tides", "description": "Tells them.", "parameters": PARAMETERS}
GOLD = {"city": ["Rome", "Rome, Italy"], "days": [3], "level": ["", 2.0]}


def row(name: str, *functions: Mapping[str, Any], asks: str = "[rome]") -> dict[str, Any]:
    question = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": asks}]]
    return {"id": name, "question": question, "function": list(functions)}


QUESTIONS = {
    "simple_python": [row("simple_python_0", FORECAST), row("simple_python_1", TIDES)],
    "multiple": [row("multiple_0", FORECAST, TIDES)],
    "parallel": [row("parallel_0", FORECAST, TIDES)],
    "irrelevance": [row("irrelevance_0", FORECAST)],
    "live_simple": [row("live_simple_0", FORECAST)],
}
ANSWERS = {
    "simple_python": [
        {"id": "simple_python_0", "ground_truth": [{"weather.forecast": GOLD}]},
        {"id": "simple_python_1", "ground_truth": [{"tides": GOLD}]},
    ],
    "multiple": [{"id": "multiple_0", "ground_truth": [{"weather.forecast": GOLD}]}],
    "parallel": [
        {"id": "parallel_0", "ground_truth": [{"weather.forecast": GOLD}, {"tides": GOLD}]}
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "bfcl_eval" / "data"
    (data / "possible_answer").mkdir(parents=True)
    for place, tables in ((data, QUESTIONS), (data / "possible_answer", ANSWERS)):
        for name, rows in tables.items():
            lines = "\n".join(json.dumps(one) for one in rows)
            (place / f"BFCL_v4_{name}.json").write_text(lines + "\n")
    return tmp_path


def one_task(folder: Path, category: Category) -> BfclTask:
    return load_bfcl(category, folder)[0]


def called(*calls: tuple[str, dict[str, Any]]) -> Reply:
    return Reply(tool_calls=tuple(ToolCall(name, arguments) for name, arguments in calls))


def test_questions_become_calls(folder: Path) -> None:
    task, other = load_bfcl("simple_python", folder)
    assert (task.id, task.category, task.question) == ("simple_python_0", "simple_python", "[rome]")
    assert [message.role for message in task.call.messages] == ["system", "user"]
    (tool,) = task.call.tools
    assert (tool.name, tool.description) == ("weather.forecast", "Tells it.")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "description": "How many."},
            "level": {"type": "number", "description": "Metres."},
        },
        "required": ["city"],
    }
    check_schema("tool", tool.parameters)
    assert task.call.tool_choice == "any" and not task.call.parallel_tool_calls
    assert load_bfcl("simple_python", folder, limit=1) == (task,) != (other,)


def test_each_category_has_its_own_rules(folder: Path) -> None:
    right = {"city": "rome", "days": 3}
    forecast, tides = ("weather.forecast", right), ("tides", right)
    multiple = one_task(folder, "multiple")
    assert multiple.check(called(forecast)) and not multiple.check(called(tides))
    assert not multiple.check(called(forecast, forecast))
    parallel = one_task(folder, "parallel")
    assert parallel.call.parallel_tool_calls
    assert parallel.check(called(forecast, tides)) and parallel.check(called(tides, forecast))
    assert not parallel.check(called(forecast)) and not parallel.check(called(forecast, forecast))
    irrelevance = one_task(folder, "irrelevance")
    assert irrelevance.call.tool_choice == "auto" and irrelevance.gold == ()
    assert not irrelevance.check(Reply('{"name": "weather.forecast", "arguments": {"city": "a'))
    assert irrelevance.check(Reply("I cannot.")) and not irrelevance.check(called(forecast))
    assert not one_task(folder, "simple_python").check(Reply("It rains."))


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"city": "Rome", "days": 3}, True),
        ({"city": " ROME. ", "days": 3}, True),
        ({"city": "rome italy", "days": 3, "level": 2.0}, True),
        ({"city": "Rome", "days": 3, "level": 2}, True),  # a whole number passes for a float
        ({"city": "Rome", "days": 3.0}, False),  # but no float for a whole number
        ({"city": "Rome", "days": "3"}, False),
        ({"city": "Rome", "days": True}, False),
        ({"city": "Rome", "days": 4}, False),
        ({"city": "Rome", "days": 3, "level": 2.5}, False),
        ({"city": "Rome"}, False),  # days may not be left out
        ({"days": 3}, False),
        ({"city": "Rome", "days": 3, "more": 1}, False),
        ({"city": "Rom", "days": 3}, False),
        ({"city": ["Rome"], "days": 3}, False),
        ({"city": None, "days": 3}, False),
        ({}, False),
    ],
)
def test_arguments_are_right_by_the_rules(
    folder: Path, arguments: dict[str, Any], right: bool
) -> None:
    task = one_task(folder, "simple_python")
    assert task.check(called(("weather.forecast", arguments))) is right
    assert not task.check(called(("forecast", arguments)))


OBJECTS = [{"a": ["Hi there", ""], "b": [1, 2]}]


@pytest.mark.parametrize(
    ("described", "right", "value", "passes"),
    [
        ({"type": "array", "items": {"type": "integer"}}, [[1, 2]], [1, 2], True),
        ({"type": "array", "items": {"type": "integer"}}, [[1, 2]], [2, 1], False),
        ({"type": "array", "items": {"type": "integer"}}, [[1, 2]], [1, 2.0], False),
        ({"type": "array", "items": {"type": "integer"}}, [[1, 2]], "1, 2", False),
        ({"type": "array", "items": {"type": "string"}}, [["A b"], ["c"]], ["a-B"], True),
        ({"type": "array", "items": {"type": "string"}}, [["A b"], ""], [], True),
        ({"type": "tuple", "items": {"type": "float"}}, [[1.5, 2.0]], [1.5, 2.0], True),
        ({"type": "array", "items": {"type": "dict"}}, [OBJECTS], [{"b": 2}], True),
        ({"type": "array", "items": {"type": "dict"}}, [OBJECTS], [{"a": "hi there"}], False),
        ({"type": "array", "items": {"type": "dict"}}, [OBJECTS], [{"b": 2}, {"b": 2}], False),
        ({"type": "dict"}, OBJECTS, {"a": "HI THERE", "b": 1}, True),
        ({"type": "dict"}, OBJECTS, {"b": 1, "c": 1}, False),
        ({"type": "dict"}, OBJECTS, {"b": 3}, False),
        ({"type": "dict"}, ["", *OBJECTS], {"b": 2}, True),
        ({"type": "boolean"}, [True], True, True),
        ({"type": "boolean"}, [True], 1, False),
        ({"type": "boolean"}, [True], "true", False),
        ({"type": "any"}, ["x"], "X", True),
        ({"type": "string"}, ["it's"], 'it"s', True),
        ({"type": "string"}, ["a/b_c*d^e"], "ABCDE", True),
        ({"type": "integer"}, ["n"], "n", True),  # a variable's name, told in the answers
        ({"type": "integer"}, ["n"], "m", False),
        ({"type": "integer"}, ["n"], 3, False),
    ],
)
def test_values_of_every_type(
    described: dict[str, Any], right: Sequence[Any], value: Any, passes: bool
) -> None:
    function = {"name": "f", "parameters": {"properties": {"x": described}}}
    assert right_call(function, ToolCall("f", {"x": value}), ("f", {"x": right})) is passes


def test_schemas_are_of_json() -> None:
    described = {
        "type": "dict",
        "properties": {
            "type": {"type": "any"},
            "free": {"type": "dict", "description": "Anything."},
            "level": {"type": "integer", "enum": ["1", "2"]},
            "pairs": {"type": "tuple", "items": {"type": "float"}, "default": []},
        },
        "required": [],
    }
    assert schema_of(described) == {
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "free": {"type": "object", "description": "Anything.", "additionalProperties": True},
            "level": {"type": "integer"},
            "pairs": {"type": "array", "items": {"type": "number"}},
        },
        "required": [],
    }


def test_the_suite_runs_them(folder: Path, tmp_path: Path) -> None:
    calls = [
        {"name": "weather.forecast", "arguments": {"city": "Rome, Italy", "days": 3}},
        {"name": "tides", "arguments": {"city": "Rome", "days": 4}},
    ]
    reply = f"<tool_call>\n{json.dumps(calls[0])}\n</tool_call>"
    path = write_scripted_gguf(tmp_path / "scripted.gguf", {"[rome]": reply})
    task = one_task(folder, "simple_python")
    with LoadedTier(path, n_ctx=2048, threads=1) as tier:
        (outcome,) = run_suite(tier, [task])
    assert outcome.passed and outcome.task is task
    assert outcome.reply.tool_calls[0].arguments == calls[0]["arguments"]


# --- Where the questions are ----------------------------------------------------------------------


def test_a_wheel_is_read_as_it_is(folder: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "bfcl_eval-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path in (folder / "bfcl_eval").rglob("*.json"):
            file.write(path, path.relative_to(folder))
    data = folder / "bfcl_eval" / "data"
    for category in CATEGORIES:
        assert (
            load_bfcl(category, wheel) == load_bfcl(category, data) == load_bfcl(category, folder)
        )


def test_the_installed_package_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("bfcl_eval")
    package.__spec__ = importlib.machinery.ModuleSpec("bfcl_eval", None, is_package=True)
    package.__spec__.submodule_search_locations = [str(folder / "bfcl_eval")]
    monkeypatch.setitem(sys.modules, "bfcl_eval", package)
    assert load_bfcl("simple_python") == load_bfcl("simple_python", folder)
    package.__spec__.submodule_search_locations = []
    with pytest.raises(MissingExtraError, match="pip install --no-deps bfcl-eval=="):
        load_bfcl("simple_python")


@pytest.mark.parametrize("category", ["live_simple", "simple_java", ""])
def test_other_categories_are_not_read(folder: Path, category: str) -> None:
    with pytest.raises(ConfigError, match="is not read here; choose one of simple_python"):
        load_bfcl(category, folder)  # type: ignore[arg-type]


def test_files_that_are_not_right_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no BFCL_v4_\*\.json files"):
        load_bfcl("multiple", tmp_path / "none")
    (tmp_path / "bad.whl").write_text("no zip")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_bfcl("multiple", tmp_path / "bad.whl")
    data = folder / "bfcl_eval" / "data"
    (data / "possible_answer" / "BFCL_v4_multiple.json").unlink()
    with pytest.raises(ConfigError, match=r"possible_answer/BFCL_v4_multiple\.json cannot be read"):
        load_bfcl("multiple", folder)
    (data / "BFCL_v4_parallel.json").write_text("{")
    with pytest.raises(ConfigError, match=r"BFCL_v4_parallel\.json cannot be read"):
        load_bfcl("parallel", folder)
    (data / "BFCL_v4_irrelevance.json").write_text('{"id": "x"}')
    with pytest.raises(ConfigError, match="is not in the leaderboard's format"):
        load_bfcl("irrelevance", folder)
