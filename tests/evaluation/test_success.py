"""The suite on a model whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_writer import CHATML_THINKING, CHATML_TOOLS
from tiny_models import write_scripted_gguf, write_tiny_gguf

from tierwise.evaluation.success import AT_ONCE, run_suite, suite_tier
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tasks import SUITE_NAME, Grade, Kind, Task, summarize
from tierwise.runtime.chat import Call, Message, Reply, Tool, ToolCall
from tierwise.runtime.errors import EngineError
from tierwise.runtime.loaded_tier import LoadedTier

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "Tells the weather.", CITY)
CLOCK = Tool("get_time", "Tells the time.", CITY)


def called(tool: str, city: str) -> str:
    return f'<tool_call>\n{{"name": "{tool}", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


# The keyword that stands last in the prompt decides, and each task's question is a keyword.
SCRIPT = {
    "[oslo]": called("get_weather", "Oslo"),
    "[bern]": called("get_weather", "Rome"),
    "[lima]": called("get_time", "Lima"),
    "[poem]": "I cannot help with that.",
    "[json]": '{"city": "oslo "}',
}


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedTier]:
    path = write_scripted_gguf(tmp_path_factory.mktemp("models") / "scripted.gguf", SCRIPT)
    with LoadedTier(path, n_ctx=2048, threads=1) as loaded:
        yield loaded


def task(kind: Kind, question: str, expected: Reply, grade: Grade = "easy", **call: object) -> Task:
    fields = {"max_tokens": 200, **call}
    return Task(
        id=question,
        grade=grade,
        kind=kind,
        call=Call((Message("user", question),), **fields),  # type: ignore[arg-type]
        expected=expected,
    )


def tool_task(kind: Kind, question: str, tool: str, city: str, grade: Grade = "easy") -> Task:
    expected = Reply(tool_calls=(ToolCall(tool, {"city": city}),))
    return task(kind, question, expected, grade, tools=(WEATHER, CLOCK))


RIGHT = (
    tool_task("fill_arguments", "[oslo]", "get_weather", "Oslo"),
    tool_task("choose_tool", "[lima]", "get_time", "Lima", "medium"),
    task("no_tool_fits", "[poem]", Reply("any text"), "hard", tools=(WEATHER,)),
    task("answer_in_schema", "[json]", Reply('{"city": "Oslo"}'), response_schema=CITY),
)
WRONG = (
    tool_task("fill_arguments", "[bern]", "get_weather", "Bern"),  # it asks for Rome
    tool_task("choose_tool", "[lima]", "get_weather", "Lima", "medium"),  # it takes the clock
    task("no_tool_fits", "[oslo]", Reply("any text"), "hard", tools=(WEATHER,)),  # it calls
    task("answer_in_schema", "[json]", Reply('{"city": "Bern"}'), response_schema=CITY),
)


def test_exactly_the_right_ones_pass(tier: LoadedTier) -> None:
    tasks = [one for pair in zip(RIGHT, WRONG, strict=True) for one in pair]
    outcomes = run_suite(tier, tasks)
    assert [outcome.passed for outcome in outcomes] == [True, False] * 4
    assert [outcome.task for outcome in outcomes] == tasks
    assert outcomes[0].reply.tool_calls[0].arguments == {"city": "Oslo"}
    assert outcomes[4].reply.text == "I cannot help with that."


def test_the_sum_is_by_grade_and_kind(tier: LoadedTier) -> None:
    tasks = [*RIGHT, *WRONG[:2]]
    passed = [outcome.passed for outcome in run_suite(tier, tasks)]
    result = summarize(tasks, passed, suite=SUITE_NAME, seed=7)
    assert (result.suite, result.seed) == (SUITE_NAME, 7)
    assert (result.overall.value, result.overall.n) == (pytest.approx(4 / 6), 6)
    shares = {name: (found.value, found.n) for name, found in result.by_grade.items()}
    assert shares == {"easy": (pytest.approx(2 / 3), 3), "medium": (0.5, 2), "hard": (1.0, 1)}
    assert {name: found.value for name, found in result.by_kind.items()} == {
        "fill_arguments": 0.5,
        "choose_tool": 0.5,
        "no_tool_fits": 1.0,
        "answer_in_schema": 1.0,
    }


def test_a_task_that_cannot_be_taken_is_failed(tier: LoadedTier) -> None:
    long = task("no_tool_fits", "word " * 3000, Reply("any text"), tools=(WEATHER,))
    bad = replace(WEATHER, parameters={"type": "object", "properties": {"city": {"type": "nix"}}})
    wrong = task("no_tool_fits", "[poem]", Reply("any text"), tools=(bad,), tool_choice="any")
    outcomes = run_suite(tier, [long, RIGHT[2], wrong])
    assert [outcome.passed for outcome in outcomes] == [False, True, False]
    assert outcomes[0].reply == Reply()


LONG_THOUGHT = (
    "I wonder what is meant by this. There is a tool that tells the weather, and another says "
    "what time it is; a city was named, but nothing else. So the first is what I need, "
    "unless somebody only wants to chat with me about Norway."
)


@pytest.mark.parametrize("template", ["thinks", "does not"])
def test_thoughts_do_not_count_to_the_length_of_an_answer(tmp_path: Path, template: str) -> None:
    path = tmp_path / "thinker.gguf"
    script = {"[oslo]": f"<think>\n{LONG_THOUGHT}\n</think>\n\n{called('get_weather', 'Oslo')}"}
    kind = CHATML_THINKING if template == "thinks" else CHATML_TOOLS
    write_scripted_gguf(path, script, chat_template=kind, context=4096)
    tasks = [tool_task("choose_tool", "[oslo]", "get_weather", "Oslo")]
    tasks[0] = replace(tasks[0], call=replace(tasks[0].call, max_tokens=100))
    with suite_tier(path, tasks, 4096, threads=1) as tier:
        (outcome,) = run_suite(tier, tasks)
    assert outcome.passed is (template == "thinks")
    assert (outcome.reply.reasoning == LONG_THOUGHT) is outcome.passed


def test_deadlines_of_tasks_do_not_count(tier: LoadedTier) -> None:
    hasty = replace(RIGHT[2], call=replace(RIGHT[2].call, timeout_s=0.0))
    assert run_suite(tier, [hasty])[0].passed


def test_other_failures_are_not_taken_for_wrong_answers(tmp_path: Path) -> None:
    tier = LoadedTier(write_tiny_gguf(tmp_path / "tiny.gguf"), n_ctx=512, threads=1)
    tier.close()
    with pytest.raises(EngineError, match="was closed"):
        run_suite(tier, RIGHT[:1])


def test_progress_is_told(tier: LoadedTier) -> None:
    told: list[tuple[str, float]] = []
    run_suite(
        tier,
        [RIGHT[0], WRONG[0], RIGHT[1]],
        progress=lambda text, share: told.append((text, share)),
    )
    assert told == [
        ("1 right of 1", pytest.approx(1 / 3)),
        ("1 right of 2", pytest.approx(2 / 3)),
        ("2 right of 3", 1.0),
    ]


def test_the_real_suite_runs_and_repeats(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context=4096, layers=1)
    tasks = [
        replace(one, call=replace(one.call, max_tokens=24))
        for one in generate_tasks(4, seed=1, split="test")
    ]
    with LoadedTier(path, n_ctx=4096, threads=1) as tier:
        first = [(one.reply.text, one.passed) for one in run_suite(tier, tasks)]
        assert [(one.reply.text, one.passed) for one in run_suite(tier, tasks)] == first
    assert len(first) == 4


def test_tools_that_tasks_share_are_read_once(tmp_path: Path) -> None:
    """Though others come between, and more tasks than are answered at once."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context=4096, layers=1)
    tasks = [
        replace(one, call=replace(one.call, max_tokens=8))
        for one in generate_tasks(3 * AT_ONCE, seed=1, split="test", menu=3 * AT_ONCE)
    ]
    with suite_tier(path, tasks, 4096, threads=1) as tier:
        assert tier.engine.slots == AT_ONCE
        prompts = [tier.prompt(one.call) for one in tasks]
        assert max(map(len, prompts)) + 8 <= tier.n_ctx < max(map(len, prompts)) + 8 + 256
        outcomes = run_suite(tier, tasks)
    shared = [
        outcome.reply.usage.cached_tokens / outcome.reply.usage.prompt_tokens
        for outcome in outcomes
        if outcome.task.call.tools
    ]
    assert sum(share > 0.5 for share in shared) == len(shared) - 1  # all but the first


def test_a_suite_gets_no_longer_context_than_is_allowed(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context=4096, layers=1)
    long = task("no_tool_fits", "word " * 3000, Reply("any text"))
    with suite_tier(path, [long], 1024, threads=1) as tier:
        assert tier.n_ctx == 1024
        assert not run_suite(tier, [long])[0].passed
