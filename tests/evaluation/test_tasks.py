"""The generated tasks: what they promise, what they accept, and what they refuse."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import product
from statistics import mean
from typing import Any, get_args

import pytest

from tierwise.evaluation.task_generator import MAX_TOKENS, generate_tasks
from tierwise.evaluation.tasks import (
    GRADES,
    KINDS,
    SUITE_NAME,
    Grade,
    Kind,
    Task,
    menu_of,
    same_value,
    suite_name,
    summarize,
    wilson_interval,
)
from tierwise.evaluation.tool_catalog import CATALOGS, Catalog, Pattern, Split, slot_names
from tierwise.runtime.chat import JSONObject, Reply, Tool, ToolCall

SPLITS: tuple[Split, ...] = ("test", "calibration")
TASKS: dict[Split, tuple[Task, ...]] = {
    split: generate_tasks(480, seed=7, split=split) for split in SPLITS
}
ALL = TASKS["test"] + TASKS["calibration"]
CALLING = [task for task in ALL if task.expected.tool_calls]
IN_SCHEMA = [task for task in ALL if task.kind == "answer_in_schema"]


def request_of(task: Task) -> str:
    return task.call.messages[-1].content


def gold_call(task: Task) -> ToolCall:
    return task.expected.tool_calls[0]


def gold_values(task: Task) -> dict[str, Any]:
    if task.expected.tool_calls:
        return dict(gold_call(task).arguments)
    return dict(json.loads(task.expected.text)) if task.kind == "answer_in_schema" else {}


def gold_schema(task: Task) -> JSONObject:
    if task.call.response_schema is not None:
        return task.call.response_schema
    return next(t.parameters for t in task.call.tools if t.name == gold_call(task).name)


def with_values(task: Task, values: Mapping[str, Any]) -> Reply:
    """The gold reply with other arguments or fields."""
    if task.kind == "answer_in_schema":
        return Reply(text=json.dumps(values))
    return replace(task.expected, tool_calls=(replace(gold_call(task), arguments=values),))


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from strings_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from strings_in(one)


# --- What is generated ------------------------------------------------------------------------


def test_same_arguments_give_the_same_tasks() -> None:
    assert generate_tasks(60, seed=3) == generate_tasks(60, seed=3)
    assert generate_tasks(60, seed=3) != generate_tasks(60, seed=4)
    assert generate_tasks(0) == ()
    with pytest.raises(ValueError, match="-1"):
        generate_tasks(-1)


@pytest.mark.parametrize("split", SPLITS)
def test_fewer_tasks_are_the_beginning_of_more(split: Split) -> None:
    more = generate_tasks(40, split=split)
    for n in (1, 13, 20, 39):
        assert generate_tasks(n, split=split) == more[:n]


def test_the_name_of_the_suite_stands_for_these_very_tasks() -> None:
    """Stored results are compared by the suite's name: whoever changes a text must change it."""
    tasks = []
    for task in generate_tasks(240):
        said = {name: value for name, value in asdict(task).items() if name != "expected"}
        calls = [asdict(call) for call in task.expected.tool_calls]
        tasks.append({**said, "text": task.expected.text, "calls": calls})
    told = json.dumps(tasks, sort_keys=True)
    fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]
    assert (SUITE_NAME, fingerprint) == ("tierwise-tools-3", "b2e63fdfc6e87102")


def test_every_beginning_is_balanced() -> None:
    for n in range(1, 61):
        tasks = TASKS["test"][:n]
        counts: list[list[int]] = [
            [sum(task.kind == kind for task in tasks) for kind in KINDS],
            [sum(task.grade == grade for task in tasks) for grade in GRADES],
            [
                sum((task.kind, task.grade) == pair for task in tasks)
                for pair in product(KINDS, GRADES)
            ],
        ]
        assert all(max(of_one) - min(of_one) <= 1 for of_one in counts), n


def test_ids_and_requests_are_unique() -> None:
    for tasks in TASKS.values():
        assert len({task.id for task in tasks}) == len(tasks)
        assert len({request_of(task) for task in tasks}) == len(tasks)
    assert TASKS["test"][1].id == "fill_arguments-medium-0000"
    assert TASKS["test"][13].id == "fill_arguments-medium-0001"


def test_calls_fit_their_kind() -> None:
    for task in ALL:
        call, names = task.call, [tool.name for tool in task.call.tools]
        assert [m.role for m in call.messages] in (["user"], ["system", "user"])
        assert all(m.content.strip() for m in call.messages)
        assert len(set(names)) == len(names)
        assert call.max_tokens == MAX_TOKENS
        assert call.must_call == bool(task.expected.tool_calls)
        assert (call.response_schema is not None) == (task.kind == "answer_in_schema")
        assert bool(names) == (task.kind != "answer_in_schema")
        if task.kind == "choose_tool":
            assert call.tool_choice == "any"
        if task.kind == "fill_arguments":
            assert call.tool_choice in ("any", gold_call(task).name)
        if task.kind == "no_tool_fits":
            assert call.tool_choice == "auto"
    assert {len(task.call.messages) for task in ALL} == {1, 2}


# --- The two splits ---------------------------------------------------------------------------


def patterns(catalog: Catalog) -> list[Pattern]:
    return [*(tool for domain in catalog.domains for tool in domain.tools), *catalog.forms]


def phrases(catalog: Catalog) -> set[str]:
    found = {p for one in patterns(catalog) for grade in GRADES for p in one.phrasings(grade)}
    found |= {request for domain in catalog.domains for request, _ in domain.beyond}
    found |= {question for talk in catalog.talks for question in talk.questions if "?" in question}
    found |= {text for talk in catalog.talks for row in talk.rows for text in row if " " in text}
    found |= {*catalog.instructions, *catalog.refusals}
    found |= {*catalog.openings, *catalog.endings, *catalog.systems} - {""}
    return {" ".join(phrase.casefold().split()) for phrase in found}


def test_splits_share_no_text() -> None:
    test, calibration = (CATALOGS[split] for split in SPLITS)
    assert not phrases(test) & phrases(calibration)
    assert not {p.name for p in patterns(test)} & {p.name for p in patterns(calibration)}
    assert not {p.description for p in patterns(test)} & {
        p.description for p in patterns(calibration)
    }
    names = [{name for pool in one.names.values() for name in pool} for one in (test, calibration)]
    assert not names[0] & names[1]


def test_splits_share_no_request_whatever_the_seed() -> None:
    requests = {
        split: {
            " ".join(request_of(task).casefold().split())
            for seed in range(4)
            for task in generate_tasks(360, seed=seed, split=split)
        }
        for split in SPLITS
    }
    assert not requests["test"] & requests["calibration"]


def test_splits_share_no_gold_name() -> None:
    """Only values of closed sets (units, colours, file types) may be gold in both."""
    names = [
        {string for task in TASKS[split] for string in strings_in(gold_values(task))}
        & {name for pool in CATALOGS[split].names.values() for name in pool}
        for split in SPLITS
    ]
    assert min(len(found) for found in names) > 80
    assert not names[0] & names[1]


# --- The catalogue ----------------------------------------------------------------------------


def test_catalogue_is_wide() -> None:
    tools = [tool for c in CATALOGS.values() for domain in c.domains for tool in domain.tools]
    assert len(tools) >= 40
    assert len({tool.name for tool in tools}) == len(tools)
    assert sum(len(c.domains) for c in CATALOGS.values()) >= 12
    types = json.dumps([tool.tool.parameters for tool in tools])
    for kind in ("string", "integer", "number", "boolean", "array", "object"):
        assert f'"type": "{kind}"' in types
    assert '"enum"' in types
    assert '"default"' in types


def test_phrasings_name_known_slots_and_all_that_is_required() -> None:
    bounds = {"easy": (1, 2), "medium": (2, 3), "hard": (3, 6)}
    for catalog in CATALOGS.values():
        for pattern in patterns(catalog):
            required = {name for name, slot in pattern.slots.items() if not slot.optional}
            for grade in GRADES:
                low, high = bounds[grade]
                # A form's fields are cheaper than arguments: its schema lists just those.
                high += pattern in catalog.forms
                for phrasing in pattern.phrasings(grade):
                    named = slot_names(phrasing)
                    assert len(set(named)) == len(named)
                    assert low <= len(named) <= high, phrasing
                    assert set(named) <= set(pattern.slots), phrasing
                    assert pattern in catalog.forms or required <= set(named), phrasing
        for domain in catalog.domains:
            assert len(domain.tools) >= 3
            assert len(domain.beyond) >= 3


def test_every_slot_is_named_by_some_phrasing() -> None:
    for catalog in CATALOGS.values():
        for pattern in patterns(catalog):
            named = {s for g in GRADES for p in pattern.phrasings(g) for s in slot_names(p)}
            assert named == set(pattern.slots), pattern.name


# --- Gold replies -----------------------------------------------------------------------------


def test_every_gold_reply_passes() -> None:
    for task in ALL:
        assert task.check(task.expected), task.id


def validate(value: Any, schema: JSONObject) -> None:
    """Asserts that a value is valid, for the few keywords of JSON schema that the tasks use."""
    assert set(schema) <= {
        *("type", "properties", "required", "additionalProperties", "items", "enum"),
        *("description", "title", "default"),
    }
    if schema["type"] == "object":
        assert isinstance(value, dict)
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) <= set(value) <= set(schema["properties"])
        for name, one in value.items():
            validate(one, schema["properties"][name])
    elif schema["type"] == "array":
        assert isinstance(value, list)
        for one in value:
            validate(one, schema["items"])
    else:
        allowed = {"string": str, "integer": int, "number": int | float, "boolean": bool}
        assert isinstance(value, allowed[schema["type"]])
        assert isinstance(value, bool) == (schema["type"] == "boolean")
    assert "enum" not in schema or value in schema["enum"]


def test_gold_values_are_valid_and_in_the_order_of_the_schema() -> None:
    for task in CALLING + IN_SCHEMA:
        values, schema = gold_values(task), gold_schema(task)
        validate(values, schema)
        assert list(values) == [name for name in schema["properties"] if name in values]


def test_gold_never_spells_out_a_default() -> None:
    for task in CALLING:
        for name, value in gold_values(task).items():
            assert gold_schema(task)["properties"][name].get("default") != value


def test_requests_say_gold_strings_and_numbers_verbatim() -> None:
    for task in CALLING + IN_SCHEMA:
        request = request_of(task).casefold()
        for name, value in gold_values(task).items():
            assert all(string.casefold() in request for string in strings_in(value)), task.id
            if task.grade != "hard" and isinstance(value, int | float):
                assert str(value) in request, (task.id, name)


def test_gold_text_of_no_tool_fits_is_a_sentence() -> None:
    for task in ALL:
        if task.kind == "no_tool_fits":
            text = task.expected.text
            assert text[0].isupper()
            assert text[-1] in ".!?"
            assert "{" not in text


def test_no_tool_that_fits_is_offered_where_none_should_fit() -> None:
    """Medium: nothing of the domain of the tool that is missed. Hard: all of some domain, which
    comes as near as can be, and cannot help."""
    for split, catalog in CATALOGS.items():
        for task in TASKS[split]:
            if task.kind != "no_tool_fits" or task.grade == "easy":
                continue
            offered = {tool.name for tool in task.call.tools}
            if task.grade == "hard":
                assert any({tool.name for tool in d.tools} <= offered for d in catalog.domains)
                continue
            missed = [
                domain
                for domain in catalog.domains
                for tool in domain.tools
                if tool.description[1:].rstrip(".") in task.expected.text
            ]
            assert len(missed) == 1, task.id
            assert not {tool.name for tool in missed[0].tools} & offered


# --- Difficulty -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["choose_tool", "fill_arguments", "no_tool_fits"])
def test_more_tools_by_grade(kind: Kind) -> None:
    counts = {
        grade: [len(t.call.tools) for t in ALL if (t.kind, t.grade) == (kind, grade)]
        for grade in GRADES
    }
    assert max(counts["easy"]) <= 2
    assert mean(counts["easy"]) < mean(counts["medium"]) < mean(counts["hard"])
    assert max(counts["medium"]) <= 4
    if kind != "fill_arguments":
        assert min(counts["medium"]) >= 3
        assert set(counts["hard"]) == {6, 7, 8}


@pytest.mark.parametrize("kind", ["fill_arguments", "answer_in_schema"])
def test_more_and_richer_values_by_grade(kind: Kind) -> None:
    of_grade = {
        grade: [gold_values(t) for t in ALL if (t.kind, t.grade) == (kind, grade)]
        for grade in GRADES
    }
    sizes = {grade: [len(values) for values in found] for grade, found in of_grade.items()}
    assert max(sizes["easy"]) <= 2
    assert mean(sizes["easy"]) < mean(sizes["medium"]) < mean(sizes["hard"])
    assert min(sizes["hard"]) >= 3
    types = {
        grade: Counter(type(value) for values in found for value in values.values())
        for grade, found in of_grade.items()
    }
    for simple in ("easy", "medium"):
        assert not {list, dict, bool} & set(types[simple])
    assert {list, dict, bool} <= set(types["hard"])


def test_hard_choices_have_close_siblings() -> None:
    for split, catalog in CATALOGS.items():
        domain_of = {tool.name: d.name for d in catalog.domains for tool in d.tools}
        for task in TASKS[split]:
            if task.kind == "choose_tool":
                same = [
                    tool
                    for tool in task.call.tools
                    if domain_of[tool.name] == domain_of[gold_call(task).name]
                ]
                assert len(same) in {"easy": (1,), "medium": (2,), "hard": (3, 4)}[task.grade]


# --- Wrong replies ----------------------------------------------------------------------------


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + " x"
    if isinstance(value, list):
        return value[::-1]
    return {name: changed(one) for name, one in value.items()}


def without_one(task: Task) -> Iterator[Reply]:
    values = gold_values(task)
    for name in values:
        yield with_values(task, {key: one for key, one in values.items() if key != name})


def with_one_changed(task: Task) -> Iterator[Reply]:
    values = gold_values(task)
    for name, value in values.items():
        for other in (changed(value), None, [value], {"value": value}):
            yield with_values(task, values | {name: other})


def with_one_more(task: Task) -> Iterator[Reply]:
    values = gold_values(task)
    yield with_values(task, values | {"unheard_of": 1})
    for name, schema in gold_schema(task)["properties"].items():
        if name not in values:
            yield with_values(task, values | {name: schema.get("enum", ["something"])[-1]})


def with_wrong_type(task: Task) -> Iterator[Reply]:
    values = gold_values(task)
    for name, value in values.items():
        if not isinstance(value, str):
            yield with_values(task, values | {name: json.dumps(value)})
        if isinstance(value, bool):
            yield with_values(task, values | {name: int(value)})


@pytest.mark.parametrize("corrupt", [without_one, with_one_changed, with_one_more, with_wrong_type])
def test_corrupted_values_fail(corrupt: Callable[[Task], Iterator[Reply]]) -> None:
    checked = 0
    for task in CALLING + IN_SCHEMA:
        for reply in corrupt(task):
            assert not task.check(reply), (task.id, reply)
            checked += 1
    assert checked > 100


def test_wrong_calls_fail() -> None:
    for task in CALLING:
        gold = gold_call(task)
        assert not task.check(Reply())
        assert not task.check(Reply(text=gold.to_json()))
        assert not task.check(replace(task.expected, tool_calls=(gold, gold)))
        others = [tool.name for tool in task.call.tools if tool.name != gold.name]
        for name in [*others, "", gold.name.upper(), "no_such_tool"]:
            assert not task.check(replace(task.expected, tool_calls=(replace(gold, name=name),)))


def test_wrong_texts_fail() -> None:
    bad = ("", " ", "{", "null", "[]", "3", '"x"', "[" * 100_000, "1" * 5_000, "Sure! {}", "NaN")
    for task in IN_SCHEMA[:60]:
        gold = task.expected.text
        for text in (*bad, gold[:-1], gold + gold, f"```json\n{gold}\n```", f"[{gold}]"):
            assert not task.check(Reply(text=text)), (task.id, text[:80])
        assert not task.check(Reply(text=gold, tool_calls=(ToolCall("get_forecast", {}),)))


def test_where_no_tool_fits_any_text_passes_and_no_call_does() -> None:
    for task in ALL:
        if task.kind == "no_tool_fits":
            call = ToolCall(task.call.tools[0].name, {})
            assert task.check(Reply(text="No."))
            assert not task.check(Reply(text=" \n"))
            assert not task.check(Reply(tool_calls=(call,)))
            assert not task.check(Reply(text="Gladly.", tool_calls=(call,)))


# --- What check forgives ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "given", "same"),
    [
        ("Oslo", "  oslo. ", True),
        ("Team lunch", "“TEAM \t LUNCH!”", True),
        ("Team lunch", "Teamlunch", False),
        ("09:30", "9:30", False),
        ("é", "e", False),
        ("...", "!", False),
        ("5", 5, False),
        (5, 5.0, True),
        (5, "5", False),
        (19.9, 19.900001, True),
        (19.9, 19.91, False),
        (0, 1e-9, False),
        (5, float("nan"), False),
        (5, float("inf"), False),
        (5.5, 10**400, False),
        (5, 10**400, False),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        (False, None, False),
        (None, None, True),
        (["a", "b"], ["A", "b "], True),
        (["a", "b"], ("a", "b"), True),
        (["a", "b"], ["b", "a"], False),
        (["a", "b"], ["a"], False),
        (["a"], "a", False),
        ({"a": 1}, [("a", 1)], False),
        ({"a": {"b": 2}}, {"a": {"b": 2.0}}, True),
        ({"a": {"b": 2}}, {"a": {"b": 3}}, False),
        # whole numbers may be identifiers
        (12_345_678, 12_345_679, False),
        (12_345_678, 12_345_678.0, True),
        (2.5, 2.500_000_1, True),
        # punctuation that says something
        ("-5", "5", False),
        ("-5", "(\N{MINUS SIGN}5)", True),
        (".5", "5", False),
        ("/etc", "etc", False),
        ("C#", "C", False),
        ("50%", "50", False),
        ("C#", "'c#'.", True),
        ("?", "", False),
        ("- Paris", "paris", True),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}", True),
    ],
)
def test_same_value(gold: Any, given: Any, same: bool) -> None:
    assert same_value(gold, given, {}) is same


def test_a_default_may_be_spelled_out() -> None:
    inner = {"properties": {"unit": {"type": "string", "default": "m"}, "depth": {}}}
    schema = {"properties": {"n": {"default": 1}, "inner": inner, "flag": {"default": False}}}
    gold = {"inner": {"depth": 2}}
    assert same_value(gold, {"inner": {"depth": 2, "unit": "M"}, "n": 1.0}, schema)
    assert same_value(gold, {"inner": {"depth": 2}, "flag": False}, schema)
    assert not same_value(gold, {"inner": {"depth": 2, "unit": "km"}}, schema)
    assert not same_value(gold, {"inner": {"depth": 2}, "n": 2}, schema)
    assert not same_value(gold, {"inner": {"depth": 2}, "flag": 0}, schema)
    assert not same_value({"n": 2}, {"n": 1}, schema)


def test_a_default_may_be_left_out() -> None:
    schema = {"properties": {"unit": {"default": "m"}, "depth": {}}}
    assert same_value({"depth": 2, "unit": "m"}, {"depth": 2}, schema)
    assert not same_value({"depth": 2, "unit": "km"}, {"depth": 2}, schema)
    assert not same_value({"depth": 2, "unit": "m"}, {"unit": "m"}, schema)


@pytest.mark.parametrize(
    "schema", [{"properties": {"a": True}}, {"properties": None}, {"properties": {"a": [1]}}]
)
def test_schemas_that_say_nothing_are_no_trouble(schema: Any) -> None:
    assert same_value({"a": [1]}, {"a": [1]}, schema)
    assert not same_value({}, {"a": [1]}, schema)
    assert same_value([1], [1], {"items": [{"type": "number"}]})


def test_defaults_of_generated_tasks_may_be_spelled_out() -> None:
    spelled = 0
    for task in CALLING:
        values = gold_values(task)
        for name, schema in gold_schema(task)["properties"].items():
            if "default" in schema and name not in values:
                assert task.check(with_values(task, values | {name: schema["default"]}))
                spelled += 1
    assert spelled > 5


# --- Summing up -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 2, 0.0945, 0.9055),
        (50, 100, 0.4038, 0.5962),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    found = wilson_interval(successes, n)
    assert (found.value, found.n) == (successes / n if n else 0.0, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_interval_refuses_what_cannot_be(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=str(successes)):
        wilson_interval(successes, n)


def test_summarize() -> None:
    tasks = TASKS["test"][:120]
    passed = [task.grade != "hard" and task.kind != "no_tool_fits" for task in tasks]
    result = summarize(tasks, passed, suite=SUITE_NAME, seed=7)
    assert (result.suite, result.seed) == (SUITE_NAME, 7)
    assert result.overall == wilson_interval(60, 120)
    assert result.by_grade == {
        "easy": wilson_interval(30, 40),
        "medium": wilson_interval(30, 40),
        "hard": wilson_interval(0, 40),
    }
    assert list(result.by_kind) == list(KINDS)
    assert result.by_kind["choose_tool"] == wilson_interval(20, 30)
    assert result.by_kind["no_tool_fits"] == wilson_interval(0, 30)


def test_summarize_leaves_out_what_was_not_run() -> None:
    result = summarize(TASKS["test"][:1], [True], suite=SUITE_NAME, seed=7)
    assert list(result.by_grade) == ["easy"]
    assert list(result.by_kind) == ["choose_tool"]
    assert summarize((), (), suite=SUITE_NAME, seed=7).overall == wilson_interval(0, 0)
    with pytest.raises(ValueError, match="1 tasks but 2"):
        summarize(TASKS["test"][:1], [True, True], suite=SUITE_NAME, seed=7)


def test_names_match_their_types() -> None:
    assert get_args(Grade) == GRADES
    assert get_args(Kind) == KINDS
    assert get_args(Split) == SPLITS == tuple(CATALOGS)
    assert all(isinstance(tool, Tool) for task in ALL for tool in task.call.tools)


# --- Menus ----------------------------------------------------------------------------------------


def test_tasks_of_a_menu_share_system_message_and_tools() -> None:
    tasks = generate_tasks(24, menu=6)
    for start in range(0, 24, 6):
        rows = tasks[start : start + 6]
        offered = [task.call.tools for task in rows if task.call.tools]
        tools = offered[0]
        assert all(other == tools for other in offered)
        assert len({tool.name for tool in tools}) == 4
        assert all(task.call.messages[:-1] == rows[0].call.messages[:-1] for task in rows)
        for task in rows:
            for call in task.expected.tool_calls:
                assert call.name in {tool.name for tool in tools}
    assert len({task.call.messages[-1].content for task in tasks}) == 24
    assert all(task.check(task.expected) for task in tasks)


def test_menus_keep_the_balance_and_are_the_beginning_of_more() -> None:
    tasks = generate_tasks(24, menu=6)
    assert [(t.kind, t.grade) for t in tasks] == [(t.kind, t.grade) for t in generate_tasks(24)]
    assert generate_tasks(9, menu=6) == tasks[:9]
    assert generate_tasks(9, menu=6, seed=1) != tasks[:9]


def test_nothing_on_the_menu_fits_where_no_tool_should() -> None:
    for task in generate_tasks(120, menu=6):
        if task.kind == "no_tool_fits" and task.grade == "medium":
            # The request is another domain's, whose tools have other names.
            domains = [
                d
                for d in CATALOGS["test"].domains
                if any(t.tool in task.call.tools for t in d.tools)
            ]
            assert len(domains) == 2
            refused = {
                p.description[:1].lower() + p.description[1:].rstrip(".")
                for d in domains
                for p in d.tools
            }
            assert not any(what in task.expected.text for what in refused)


def test_suites_of_menus_have_names_of_their_own() -> None:
    assert suite_name(1) == SUITE_NAME
    assert menu_of(suite_name(6)) == 6 and menu_of(SUITE_NAME) == 1 == menu_of("another-suite")
    with pytest.raises(ValueError, match="menu 1 or more"):
        generate_tasks(3, menu=0)
