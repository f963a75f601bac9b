"""gpt-oss: messages in channels, calls in two ways of writing them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grammar_accepts import Accepts
from tiny_models import write_tiny_gguf

from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.grammar import GrammarCompiler, constraint_for
from tierwise.runtime.harmony import HARMONY, HARMONY_TAGS, HarmonyParser
from tierwise.runtime.llama import Model
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.reply_parser import Parsed, Piece

SOURCE = (Path(__file__).parents[1] / "templates" / "gpt-oss.jinja").read_text(encoding="utf-8")
ADD = Tool(
    "add",
    "Adds.",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
)
CALL = Call((Message("user", "1 + 2?"),), tools=(ADD,))
ADDING = ToolCall("add", {"a": 1, "b": 2})
NEXT = "<|end|><|start|>assistant"
THOUGHT = f"<|channel|>analysis<|message|>I must add.{NEXT}"
WORDS = f"<|channel|>commentary<|message|>Let me add.{NEXT}"
ANSWER = "<|channel|>final<|message|>It is <3>, I think."
ARGUMENTS = '<|message|>{"a": 1, "b": 2}'
CALLS = [
    f"<|channel|>commentary to=functions.add <|constrain|>json{ARGUMENTS}",
    f"<|channel|>commentary to=functions.add{ARGUMENTS}",
    f" to=functions.add<|channel|>commentary json{ARGUMENTS}",
    f" to=functions.add<|channel|>commentary <|constrain|>json{ARGUMENTS}",
]


def parse(text: str, call: Call = CALL, cuts: tuple[int, ...] = ()) -> tuple[list[Piece], Parsed]:
    parser = HarmonyParser(call)
    pieces: list[Piece] = []
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        pieces += parser.push(text[start:end])
    parsed = parser.finish()
    return [*pieces, *parsed.pieces], parsed


def whole(text: str, call: Call = CALL) -> tuple[str, str, tuple[ToolCall, ...]]:
    _, parsed = parse(text, call)
    return parsed.text, parsed.reasoning, parsed.tool_calls


# --- Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("calling", CALLS)
def test_calls_are_read_however_they_are_written(calling: str) -> None:
    assert whole(calling) == ("", "", (ADDING,))
    assert whole(THOUGHT + calling + "<|end|>") == ("", "I must add.", (ADDING,))
    assert whole(THOUGHT + WORDS + calling) == ("Let me add.", "I must add.", (ADDING,))


def test_answers_and_thoughts_are_told_apart() -> None:
    assert whole(ANSWER) == ("It is <3>, I think.", "", ())
    assert whole(THOUGHT + ANSWER + "<|end|>") == ("It is <3>, I think.", "I must add.", ())
    twice = whole(THOUGHT + WORDS + THOUGHT + ANSWER)
    assert twice == ("Let me add.\n\nIt is <3>, I think.", "I must add.\n\nI must add.", ())
    assert whole("") == whole(THOUGHT[:15]) == ("", "", ())
    assert whole(THOUGHT[: THOUGHT.index("add")]) == ("", "I must ", ())


def test_what_is_of_no_channel_is_text() -> None:
    for text in ("Hello!", "  to be or not", "<b>", "<|channel", " {"):
        assert whole(text) == (text, "", ())


def test_what_is_no_call_becomes_text() -> None:
    for arguments in ('{"a": 1', "[1]", "", "{" * 100_000):
        calling = f"<|channel|>commentary to=functions.add json<|message|>{arguments}"
        assert whole(calling) == (arguments, "", ())
    assert whole(CALLS[0], replace(CALL, tool_choice="none")) == ('{"a": 1, "b": 2}', "", ())
    assert whole(CALLS[0].replace("add", "sub")) == ('{"a": 1, "b": 2}', "", ())
    sly = {"a": "<|end|><|start|>assistant<|channel|>final<|message|>"}
    calling = CALLS[0][: CALLS[0].index("{")] + '{"a": "' + sly["a"] + '"}'
    assert whole(calling) == ("", "", (ToolCall("add", sly),))


def test_streams_and_whole_replies_agree() -> None:
    rng = random.Random(7)
    parts = [THOUGHT, WORDS, ANSWER, *CALLS, "Hello", "<|end|>", "<|channel|>", "<", "\n", " to="]
    called = 0
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randint(0, 4)))
        expected = whole(text)
        for _ in range(4):
            cuts = tuple(sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, len(text)))))
            pieces, parsed = parse(text, cuts=cuts)
            assert (parsed.text, parsed.reasoning, parsed.tool_calls) == expected, text
            for reasoning, merged in ((False, parsed.text), (True, parsed.reasoning)):
                told = "".join(piece.text for piece in pieces if piece.reasoning is reasoning)
                assert told == merged, text
            assert all(piece.text for piece in pieces)
        called += bool(expected[2])
    assert called > 20


# --- The grammar ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Iterator[Model]:
    with Model(tiny_gguf) as opened:
        yield opened


@pytest.fixture(scope="module")
def accepts(model: Model) -> Any:
    grammars = GrammarCompiler(model)

    return lambda call: Accepts(grammars, model, constraint_for(call, HARMONY))


def test_a_reply_ends_with_an_answer_or_a_call(accepts: Any) -> None:
    allowed = accepts(CALL)
    for begin in ("", THOUGHT, WORDS, THOUGHT + WORDS + THOUGHT):
        for end in (ANSWER, *CALLS):
            assert allowed(begin + end), begin + end
        assert not allowed(begin) and not allowed(begin + "Hello!")
    for calling in CALLS:
        assert not allowed(calling + "!") and not allowed(calling[:-1])
        assert not allowed(calling.replace("add", "sub"))
        assert not allowed(calling.replace("1", '"one"')) and not allowed(calling + calling)


def test_a_call_that_must_come(accepts: Any) -> None:
    for choice in ("any", "add"):
        allowed = accepts(replace(CALL, tool_choice=choice))
        assert allowed(THOUGHT + CALLS[0]) and not allowed(ANSWER) and not allowed(THOUGHT + ANSWER)


def test_answers_of_a_fixed_form(accepts: Any) -> None:
    final = "<|channel|>final<|message|>"
    chosen = accepts(replace(CALL, choices=("yes", "no")))
    assert chosen(f"{THOUGHT}{final}yes") and chosen(CALLS[0]) and not chosen(f"{final}maybe")
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
    for tools in ((), (ADD,)):
        allowed = accepts(replace(CALL, tools=tools, response_schema=schema))
        assert allowed(f'{final}{{"a": null}}') and not allowed(f"{final}{{}}")
        assert allowed(CALLS[0]) is bool(tools)
    assert constraint_for(replace(CALL, tools=()), HARMONY) is None


# --- The template ---------------------------------------------------------------------------------


def test_the_template_is_known_and_its_tags_are_shown() -> None:
    template = ChatTemplate(SOURCE)
    assert template.tool_format is HARMONY and template.tags == HARMONY_TAGS


def test_templates_that_write_calls_the_other_way_are_known() -> None:
    source = SOURCE.replace(
        '{{- "<|start|>assistant to=" }}', '{{- "<|start|>assistant<|channel|>commentary to=" }}'
    ).replace(
        'tool_call.name + "<|channel|>commentary " }}', 'tool_call.name + " <|constrain|>" }}'
    )
    template = ChatTemplate(source)
    assert template.tool_format is HARMONY
    prompt = template.render(
        replace(CALL, messages=(*CALL.messages, Message("assistant", "", (ADDING,))))
    )
    assert CALLS[0] in prompt


def test_thoughts_stay_until_the_answer() -> None:
    template = ChatTemplate(SOURCE)
    calling = Message("assistant", "Let me add.", (ADDING,), reasoning="I must add.")
    result = Message("tool", "3", tool_call_id="", tool_name="add")
    talk = (*CALL.messages, calling, result)
    prompt = template.render(replace(CALL, messages=talk))
    assert f"<|channel|>analysis<|message|>I must add.\n\nLet me add.{NEXT}{CALLS[2]}" in prompt
    assert prompt.endswith('<|message|>"3"<|end|><|start|>assistant')
    later = (*talk, Message("assistant", "It is 3.", reasoning="Done."), Message("user", "Thanks"))
    prompt = template.render(replace(CALL, messages=later))
    assert "I must" not in prompt and "Done." not in prompt and CALLS[2] in prompt


def test_several_calls_have_one_thought() -> None:
    calls = tuple(replace(ADDING, id=f"{number}") for number in range(2))
    calling = Message("assistant", tool_calls=calls, reasoning="I must add.")
    results = (Message("tool", f"={one.id}", (), one.id, "add") for one in calls)
    talk = (*CALL.messages, calling, *results)
    prompt = ChatTemplate(SOURCE).render(replace(CALL, messages=talk))
    assert prompt.count("I must add.") == 1 and prompt.count(CALLS[2]) == 2
    assert prompt.index("I must") < prompt.index('"=0"') < prompt.index('"=1"')


def test_a_tier_calls_tools(tmp_path: Path, may_loop: None) -> None:
    """Models with random weights, of which the grammar leads some to a call."""
    pick = Tool("pick", "", {"properties": {"a": {"enum": [1, 2]}}, "required": ["a"]})
    call = Call(CALL.messages, (pick,), tool_choice="any", max_tokens=200)
    calls = []
    for seed in range(6):
        path = tmp_path / f"{seed}.gguf"
        write_tiny_gguf(path, chat_template=SOURCE, context=4096, seed=seed)
        with LoadedTier(path, n_ctx=1024, threads=1) as tier:
            calls += tier.reply(call).tool_calls
    assert calls and all(one.name == "pick" and one.arguments["a"] in (1, 2) for one in calls)
