"""Each check on replies that are wrong, and on right ones that look like them."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest

from tierwise.evaluation.task_generator import generate_tasks
from tierwise.routing.verify import (
    CHECKS,
    does_not_loop,
    does_not_refuse,
    is_callable,
    is_grounded,
    is_new,
    is_no_lost_cause,
    is_whole,
    says_something,
    verify,
)
from tierwise.runtime.chat import Call, Message, Reply, Tool, ToolCall

ANY = Tool("look_up", "Looks something up.", {"type": "object", "properties": {}})
PROSE = (
    "The weather in Paris is mild today, with some clouds over the river and a light breeze from "
    "the west. Tomorrow brings rain in the morning, then sun. By the weekend it climbs to twenty "
    "degrees, so pack for both. Museums will be busy; book ahead. "
)


def asked(text: str = "hi", *more: Message, tools: tuple[Tool, ...] = (ANY,), **opts: Any) -> Call:
    return Call((Message("user", text), *more), tools=tools, **opts)


def calling(name: str = "look_up", **arguments: Any) -> Reply:
    return Reply(tool_calls=(ToolCall(name, arguments),), finish_reason="tool_calls")


# --- says_something ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_reply(text: str) -> None:
    assert says_something(asked(), Reply(text)) == "the reply is empty"
    assert says_something(asked(tool_choice="none"), Reply(text)) == "the reply is empty"


@pytest.mark.parametrize("choice", ["any", "look_up"])
def test_a_tool_call_that_was_demanded(choice: str) -> None:
    call = asked(tool_choice=choice)
    assert says_something(call, Reply("Sure!")) == "no tool call, though one was demanded"
    assert says_something(call, calling()) is None


def test_words_or_a_call_will_do() -> None:
    assert says_something(asked(), Reply("Hi")) is None
    assert says_something(asked(), calling()) is None
    assert says_something(asked(tool_choice="none"), Reply("0")) is None


# --- is_whole ---------------------------------------------------------------------------


def test_json_that_was_cut_off() -> None:
    call = asked(tools=(), response_schema={"type": "object"})
    cut = Reply('{"a": "b', finish_reason="length")
    assert is_whole(call, cut) == "the reply was cut off by its limit of tokens or seconds"
    # A number looks whole wherever it is cut.
    assert is_whole(call, Reply("12", finish_reason="length")) is not None
    by_stop = Reply('{"a": "b', finish_reason="stop")
    assert is_whole(call, by_stop) == "the structured reply was cut off"
    assert is_whole(call, Reply('{"a": "b"}')) is None
    assert is_whole(call, Reply('{"a": "bbb', finish_reason="loop")) == "the reply repeats itself"
    assert is_whole(call, Reply("[" * 100_000)) is not None  # deeper than Python can read


def test_a_demanded_call_that_was_cut_off() -> None:
    cut = Reply('{"name": "look_', finish_reason="length")
    assert is_whole(asked(tool_choice="any"), cut) is not None
    assert is_whole(asked(tool_choice="any"), calling()) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "look_',
        ' <tool_call>\n{"name"',
        "<tool_call",
        "Let me see.\n<tool_call>\n<function=look_",
        '[TOOL_CALLS]look_up[ARGS]{"a',
        "<|tool_call|>[{",
    ],
)
def test_a_call_that_did_not_come_out_as_one(text: str) -> None:
    told = "a tool call that was cut off or cannot be read"
    assert is_whole(asked(), Reply(text, finish_reason="length")) == told
    assert is_whole(asked(tool_choice="none"), Reply(text)) is None  # nobody may call here


def test_free_text_may_be_cut_off() -> None:
    assert is_whole(asked(), Reply("Once upon a", finish_reason="length")) is None


def test_structured_output_beside_tools_may_start_with_a_brace() -> None:
    call = asked(response_schema={"type": "object"})
    assert is_whole(call, Reply('{"a": 1}')) is None
    assert is_whole(call, calling()) is None


# --- does_not_loop ----------------------------------------------------------------------

CLOSED = Tool(
    "book",
    "Books a table.",
    {
        "type": "object",
        "properties": {"day": {"type": "string"}, "seats": {"type": "integer"}},
        "required": ["day"],
        "additionalProperties": False,
    },
)


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("book", {"day": "Monday"}, None),
        ("book", {"day": "Monday", "seats": "2"}, None),  # who runs the tool may well read that
        ("book", {"seats": 2}, "the call of book lacks day"),
        ("book", {"day": "Monday", "hour": 9}, "book takes no hour"),
        ("buy", {}, "'buy' was called, which is no tool of this call"),
        ("look_up", {"anything": 1}, None),
    ],
)
def test_a_call_that_its_tool_cannot_take(
    name: str, arguments: dict[str, Any], problem: str | None
) -> None:
    call = Call((Message("user", "Monday at 9, for 2"),), (ANY, CLOSED))
    reply = Reply(tool_calls=(ToolCall(name, arguments),), finish_reason="tool_calls")
    assert is_callable(call, reply) == problem
    assert verify(call, reply) == (problem or "") or name == "look_up"
    named = Call(call.messages, call.tools, tool_choice="look_up")
    assert (is_callable(named, reply) is None) == (name == "look_up")


LOOP = "I think so. " * 30


@pytest.mark.parametrize("text", [LOOP, PROSE + LOOP, PROSE * 3 + LOOP, "!" * 300, "東京 " * 80])
def test_text_in_circles(text: str) -> None:
    assert does_not_loop(asked(), Reply(text)) == "the reply repeats itself"


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": "SELECT a, " * 40},
        {"first": "fine", "query": "SELECT a, " * 40, "last": "fine"},
        {"items": ["urgent"] * 40},
        {"deep": {"er": [{"note": LOOP}]}},
    ],
)
def test_arguments_in_circles(arguments: dict[str, Any]) -> None:
    assert does_not_loop(asked(), calling(**arguments)) == "the reply repeats itself"


def test_structured_output_in_circles() -> None:
    call = asked(tools=(), response_schema={})
    assert does_not_loop(call, Reply(json.dumps({"note": LOOP}))) is not None
    assert does_not_loop(call, Reply('{"note": "' + LOOP)) is not None  # cut off


RECORDS = [{"name": f"item{i}", "price": i * 37 % 101, "currency": "EUR"} for i in range(40)]
PEOPLE = [
    {"first_name": first, "last_name": last, "department": "Sales"}
    for first in ("Anna", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus")
    for last in ("Smith", "Jones", "Brown")
]


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "ha " * 20,  # short
        "\n".join(f"| item{i} | {i * 37 % 101} | EUR | yes |" for i in range(60)),
        ", ".join(str(number) for number in range(200)),
        "こんにちは、きょうはいいてんきですね。あしたもはれるとおもいます。らいしゅうはあめがふるかもしれ"
        "ませんので、かさをもっていってください。でんしゃはこんでいますから、はやめにでかけましょう。",
        "Погода в Париже сегодня мягкая, над рекой облака, с запада дует лёгкий ветер. "
        "Завтра утром будет дождь, потом солнце, а к выходным потеплеет до двадцати градусов.",
    ],
)
def test_text_that_goes_on(text: str) -> None:
    assert does_not_loop(asked(), Reply(text)) is None
    assert does_not_loop(asked(), calling(text=text)) is None


CELLS = [{"row_number": 100 + i, "column_number": 1} for i in range(40)]


@pytest.mark.parametrize("records", [RECORDS, PEOPLE, CELLS])
def test_records_rightly_repeat_their_properties(records: list[dict[str, Any]]) -> None:
    call = asked(tools=(), response_schema={})
    assert does_not_loop(call, Reply(json.dumps(records))) is None
    assert does_not_loop(asked(), calling(records=records)) is None


def test_deep_and_broken_arguments_do_no_harm() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    assert does_not_loop(asked(), calling(deep=deep)) is None
    assert verify(asked("hi"), calling(half="\ud83d" * 3, text=deep)) == ""


# --- is_new -----------------------------------------------------------------------------

PARIS = Message("assistant", tool_calls=(ToolCall("look_up", {"city": "Paris"}),))
RESULT = Message("tool", "18 degrees", tool_name="look_up")


def test_a_call_that_was_made_already() -> None:
    call = asked("Paris?", PARIS, RESULT)
    told = "look_up was called with the same arguments already"
    assert is_new(call, calling(city="Paris")) == told
    assert is_new(call, calling(city="Oslo")) is None
    assert is_new(call, calling("other", city="Paris")) is None
    assert is_new(call, Reply("18 degrees.")) is None


def test_one_of_several_calls_is_enough_and_order_of_arguments_is_nothing() -> None:
    two = Message("assistant", tool_calls=(ToolCall("t", {}), ToolCall("t", {"a": 1, "b": 2})))
    call = asked("x", two, RESULT)
    both = Reply(tool_calls=(ToolCall("t", {"c": 1}), ToolCall("t", {"b": 2, "a": 1})))
    assert is_new(call, both) is not None


def test_only_since_the_last_user_turn() -> None:
    call = asked("Paris?", PARIS, RESULT, Message("user", "And now?"))
    assert is_new(call, calling(city="Paris")) is None
    later = call.with_messages(PARIS, RESULT)
    assert is_new(later, calling(city="Paris")) is not None


def steps(*calls: tuple[str, str, bool]) -> tuple[Message, ...]:
    """Tool calls one after another, by name, argument and whether they went well."""
    said: list[Message] = []
    for number, (name, value, well) in enumerate(calls):
        made = ToolCall(name, {"x": value}, id=str(number))
        said.append(Message("assistant", tool_calls=(made,)))
        result = Message("tool", "…", tool_call_id=made.id, tool_name=name, tool_failed=not well)
        said.append(result)
    return tuple(said)


RUN, EDIT, FAILED = ("run", "tests", True), ("edit", "a.py", True), ("edit", "a.py", False)


@pytest.mark.parametrize(
    ("before", "new"),
    [
        ((RUN, EDIT), True),
        ((RUN, EDIT, RUN, ("edit", "b.py", True)), True),
        ((RUN, ("edit", "a.py", True), ("edit", "b.py", False)), True),
        ((RUN,), False),
        ((RUN, FAILED), False),  # nothing came of it
        ((RUN, ("run", "docs", True)), False),  # the same tool
        ((RUN, EDIT, RUN), False),
        ((RUN, EDIT, RUN, EDIT), False),  # round in circles
    ],
)
def test_to_look_again_is_right_once_something_has_happened(
    before: tuple[tuple[str, str, bool], ...], new: bool
) -> None:
    call = asked("Mend the tests.", *steps(*before))
    assert (is_new(call, calling("run", x="tests")) is None) is new


# --- is_grounded ------------------------------------------------------------------------


def grounded(text: str, value: Any, schema: Any = None, description: str = "") -> bool:
    properties = {"value": {"type": "string"} if schema is None else schema}
    tool = Tool("f", description, {"type": "object", "properties": properties})
    problem = is_grounded(asked(text, tools=(tool,)), calling("f", value=value))
    if problem is not None:
        assert problem == "the value for f is nowhere in the conversation"
    return problem is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Weather in Paris?", "Paris"),
        ("weather in paris?", "PARIS"),
        ("Weather in Paris?", "Paris, France"),  # half of it
        ("Mail to ann.lee@example.com", "ann.lee@example.com"),
        ("What is 12 times 7?", "12*7"),
        ("What is twelve plus 30?", "12+30"),
        ("Pay $1,200 now", 1200),
        ("Pay 1 200 now", 1200),
        ("Pay 1.200,50 now", 1200.5),
        ("It costs 19.99", 19.99),
        ("On May 14, 2024", "2024-05-14"),
        ("On May 1, 2024", "2024-05-01"),
        ("In file report_2024.txt", "report_2024.txt"),
        ("Give me five", 5),
        ("No number here", -3),
        ("At -40 degrees", -40),
        ("anything", ""),
        ("anything", "?!"),
        ("anything", None),
        ("anything", True),
        ("anything", ["Atlantis"]),
        ("anything", {"city": "Atlantis"}),
        ("How many artists are there?", "SELECT COUNT(*) FROM artists"),
        ("Albums by artist 12, newest first", "SELECT * FROM albums WHERE artist = 12"),
        ("Convert 30 dollars to euros", "EUR"),
    ],
)
def test_values_from_the_conversation(text: str, value: Any) -> None:
    assert grounded(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Weather in Paris?", "Oslo"),
        ("Weather in Paris?", "New York"),
        ("Weather?", "New York"),
        ("What is 12 times 7?", "13*48"),
        ("Pay 1,200 now", 1300),
        ("Wait 10 minutes", 15),
        ("It costs 19.99", 29.95),
        ("Give me some", 42),
        ("How many artists are there?", "SELECT salary FROM employees WHERE bonus > 5000"),
        ("Pay 200", "1200"),  # not a part of a number
    ],
)
def test_values_from_nowhere(text: str, value: Any) -> None:
    assert not grounded(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Wetter in Zürich?", "Zürich"),
        ("Wetter in Zurich?", "Zürich"),
        ("Wetter in ZÜRICH?", "zurich"),
        ("Café Lumière", unicodedata.normalize("NFD", "Café Lumière")),
        ("Café Lumière", "Cafe Lumiere"),
        ("Hauptstraße", "HAUPTSTRASSE"),
        ("東京の天気は?", "東京"),
        ("「東京タワー」を探して", "東京タワー"),
        ("서울의 날씨는?", "서울"),
        ("สภาพอากาศในกรุงเทพ", "กรุงเทพ"),
        ("Погода в Москве", "Москве"),
        ("दिल्ली का मौसम", "दिल्ली"),
        ("الطقس في ٤٢", 42),
        ("จองโต๊ะ ๔๒ ที่", 42),
    ],
)
def test_words_of_the_world(text: str, value: Any) -> None:
    assert grounded(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("東京の天気は?", "大阪"), ("Wetter in Zürich?", "Köln"), ("Погода в Москве", "Киев")],
)
def test_words_of_the_world_from_nowhere(text: str, value: str) -> None:
    assert not grounded(text, value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"enum": ["celsius", "fahrenheit"]}, "celsius"),
        ({"const": "metric system"}, "metric system"),
        ({"type": "integer", "default": 25}, 25),
        ({"anyOf": [{"enum": ["celsius"]}, {"type": "null"}]}, "celsius"),
        ({"type": "string", "description": "celsius or fahrenheit"}, "celsius"),
    ],
)
def test_values_from_the_schema(schema: Any, value: Any) -> None:
    assert grounded("How warm is it?", value, schema)
    assert not grounded("How warm is it?", value)


def test_values_from_definitions() -> None:
    parameters = {
        "type": "object",
        "properties": {"unit": {"$ref": "#/$defs/Unit"}, "description": {"type": "string"}},
        "$defs": {"Unit": {"enum": ["celsius"], "type": "string"}},
    }
    call = asked("How warm is it?", tools=(Tool("f", "", parameters),))
    assert is_grounded(call, calling("f", unit="celsius")) is None
    # "string" and "unit" are the schema's own words, not values.
    assert is_grounded(call, calling("f", unit="string")) is not None
    assert is_grounded(call, calling("f", unit="unit")) is not None


@pytest.mark.parametrize("schema", [True, False, {}, {"enum": [1, None]}])
def test_odd_schemas_do_no_harm(schema: Any) -> None:
    assert grounded("Oslo", "Oslo", schema)
    assert not grounded("Oslo", "Paris", schema)


def test_tool_results_system_prompts_and_descriptions_are_known() -> None:
    tool = Tool("f", "Reads the atlas.", {})
    call = Call(
        (
            Message("system", "Today is Friday."),
            Message("user", "Where?"),
            Message("tool", '{"city": "Lisbon"}'),
        ),
        tools=(tool,),
    )
    for value in ("Friday", "Lisbon", "atlas"):
        assert is_grounded(call, calling("f", where=value)) is None
    assert is_grounded(call, calling("f", where="Monday")) is not None


def test_text_needs_no_ground() -> None:
    assert is_grounded(asked("hi"), Reply("Atlantis sank in 9600 BC.")) is None


def test_numbers_of_any_length() -> None:
    assert grounded("It is " + "7" * 6000, "7" * 6000)
    assert not grounded("It is 7", "8" * 6000)


# --- all together -----------------------------------------------------------------------


def test_the_first_problem_is_told() -> None:
    looping = calling(city="Atlantis " * 40)
    assert verify(asked("hi"), looping) == "the reply repeats itself"
    assert verify(asked("hi"), looping, [is_grounded]).endswith("nowhere in the conversation")
    assert verify(asked("hi"), Reply("Hello!")) == ""
    assert verify(asked("hi"), Reply(), []) == ""
    assert next(iter(CHECKS)) == "says_something"


@pytest.mark.parametrize("seed", [0, 1])
def test_right_answers_seldom_look_wrong(seed: int) -> None:
    """The suite's gold replies: only numbers written as words ("a dozen") raise an alarm."""
    tasks = generate_tasks(240, seed=seed, split="calibration")
    alarms = [problem for task in tasks if (problem := verify(task.call, task.expected))]
    assert len(alarms) <= 0.06 * len(tasks), alarms
    assert all(problem.endswith("is nowhere in the conversation") for problem in alarms)


# --- is_no_lost_cause -------------------------------------------------------------------


def told(name: str, *, failed: bool) -> tuple[Message, Message]:
    """A call and what came of it."""
    call = Message("assistant", tool_calls=(ToolCall(name, {"at": "here"}),))
    return call, Message("tool", "Oh.", tool_name=name, tool_failed=failed)


def test_a_tool_that_keeps_failing_is_no_plan() -> None:
    twice = asked("hi", *told("look_up", failed=True), *told("look_up", failed=True))
    problem = "look_up was called again, which has failed 2 times in a row"
    assert is_no_lost_cause(twice, calling(at="there")) == problem
    assert verify(twice, calling(at="there")) == problem
    assert is_no_lost_cause(twice, calling("other")) is None
    assert is_no_lost_cause(twice, Reply("It does not work.")) is None


def test_failures_that_are_over_do_not_count() -> None:
    bad, good = told("look_up", failed=True), told("look_up", failed=False)
    for said in ((*bad,), (*bad, *good, *bad), (*bad, *told("other", failed=True))):
        assert is_no_lost_cause(asked("hi", *said), calling(at="there")) is None
    again = asked("hi", *bad, *bad, Message("user", "Once more, please."))
    assert is_no_lost_cause(again, calling(at="there")) is None


# --- does_not_refuse --------------------------------------------------------------------

FORECAST = Tool("get_weather", "Forecasts the weather in a city.", {"type": "object"})


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, I cannot tell you that.",
        "I can't check forecasts.",
        "I am unable to do this.",
        "I don't have access to live data.",
        "As an AI, I know nothing of today.",
        "There is no tool for that.",
    ],
)
def test_a_refusal_where_there_is_a_tool(text: str) -> None:
    call = asked("Any weather forecasts for the city of Oslo?", tools=(ANY, FORECAST))
    assert does_not_refuse(call, Reply(text)) == (
        "it says that it cannot, though there is get_weather"
    )
    assert does_not_refuse(asked("Tell me a joke.", tools=(FORECAST,)), Reply(text)) is None
    assert does_not_refuse(replace(call, tools=()), Reply(text)) is None
    answered = call.with_messages(*told("get_weather", failed=True))
    assert does_not_refuse(answered, Reply(text)) is None


def test_what_is_no_refusal() -> None:
    call = asked("What is the weather in the city of Oslo?", tools=(FORECAST,))
    for text in ("It is mild in Oslo.", "You cannot go wrong with an umbrella there."):
        assert does_not_refuse(call, Reply(text)) is None
    assert does_not_refuse(call, calling("get_weather")) is None


def test_refusals_of_generated_tasks() -> None:
    """Of refusals where a tool fits, a good part is found; of right ones, few are doubted."""
    found: dict[bool, list[bool]] = {True: [], False: []}
    for task in generate_tasks(600, seed=3, split="test"):
        right = task.kind == "no_tool_fits"
        if task.call.usable_tools and task.grade != "easy":
            reply = task.expected if right else Reply("I'm sorry, I cannot do that.")
            found[right].append(does_not_refuse(task.call, reply) is not None)
    wrong, right_ones = (sum(found[key]) / len(found[key]) for key in (False, True))
    assert wrong > 0.25 and right_ones < 0.06
