"""What the prefix cache lives on: each prompt begins with the prompt and reply before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from template_prefix import PrefixBreak, prefix_breaks, reply_text

from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.chat_template import ChatTemplate

TEMPLATES = Path(__file__).parents[1] / "templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where."}},
    "required": ["city"],
}
WEATHER = Tool("get_weather", "Tells the weather.", CITY)
CLOCK = Tool("get_time", "Tells the time.", {"type": "object", "properties": {}})
SYSTEM = Message("system", "Be brief.")


def called(city: str, call_id: str, words: str = "") -> tuple[Message, Message]:
    call = ToolCall("get_weather", {"city": city}, id=call_id)
    result = Message("tool", f"{city}: 12°", tool_call_id=call_id, tool_name="get_weather")
    return Message("assistant", words, tool_calls=(call,)), result


TALK = (
    SYSTEM,
    Message("user", "What is the weather in Köln?"),
    *called("Köln", "koeln0001"),
    Message("assistant", "It is 12 degrees.\n"),
    Message("user", "And in Bonn and Ulm?"),
    *called("Bonn", "bonn00001"),
    *called("Ulm", "ulm000001"),
    Message("assistant", " 12 degrees too. "),
    Message("user", "Thank you!"),
)
PLAIN = tuple(m for m in TALK if m.role != "tool" and not m.tool_calls)
TWICE = Message("assistant", tool_calls=tuple(c for m in TALK[6:9] for c in m.tool_calls))
PARALLEL = (*TALK[:6], TWICE, TALK[7], TALK[9], *TALK[10:])


def load(name: str) -> ChatTemplate:
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, bos="<s>", eos="</s>")


def breaks(name: str, talk: tuple[Message, ...], *tools: Tool) -> list[PrefixBreak]:
    return list(prefix_breaks(load(name), Call(talk, tools=tools)))


# Templates that go back on what they wrote, with tools and without. Everything else holds.
WITH_TOOLS = {
    # Tools are told before the latest user message, wherever that is.
    "mistral-nemo": ["user", "user"],
    "mistral-small3.2": ["user", "user"],
    # The prompt ends with <think>, which is not in the finished turn.
    "deepseek-r1-distill": ["assistant"] * 5,
    # Likewise, with an empty thought.
    "gemma4": ["assistant"] * 5,
    # A line break behind the latest tool result comes only when another message follows.
    "hermes2-pro": ["assistant"] * 3,
    "hermes3": ["assistant"] * 3,
}
WITHOUT_TOOLS = {
    "deepseek-r1-distill": ["assistant"] * 2,
    "gemma4": ["assistant"] * 2,
    # An empty think block is put before replies without thoughts, as GLM writes it by itself.
    "glm4.6": ["assistant"] * 2,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_with_tools_keeps_its_prefix(name: str) -> None:
    found = [b for b in breaks(name, TALK, WEATHER, CLOCK) if b.in_prompt]
    assert [b.role for b in found] == WITH_TOOLS.get(name, [])


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_without_tools_keeps_its_prefix(name: str) -> None:
    assert [b.role for b in breaks(name, PLAIN)] == WITHOUT_TOOLS.get(name, [])
    assert [b.role for b in breaks(name, PLAIN[1:])] == WITHOUT_TOOLS.get(name, [])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {*WITH_TOOLS, "glm4.6"}])
def test_replies_are_kept_as_they_were_written(name: str) -> None:
    """White space at their ends, which most templates trim, and calls to the last brace."""
    assert breaks(name, TALK, WEATHER, CLOCK) == []
    template = load(name)
    if template.tool_format.many:
        assert breaks(name, PARALLEL, WEATHER, CLOCK) == []
    prompt = template.render(Call(TALK, tools=(WEATHER, CLOCK)))
    assert "It is 12 degrees.\n" in prompt and " 12 degrees too. " in prompt


@pytest.mark.parametrize("name", ["mistral-nemo", "mistral-small3.2"])
def test_of_mistral_a_user_turn_is_kept_whole(name: str) -> None:
    """Within one user turn, however many calls it takes, only the latest call's id is new."""
    found = breaks(name, TALK[:11], WEATHER, CLOCK)
    assert all(not b.in_prompt for b in found if b.role != "user")
    assert all(b.was.startswith("}]") or b.role == "user" for b in found)


def test_qwen3_forgets_its_thoughts_when_the_user_speaks() -> None:
    first, result = called("Köln", "1")
    talk = (
        *TALK[:2],
        replace(first, reasoning="I must look."),
        result,
        Message("assistant", "It is 12 degrees.", reasoning="Now I know."),
        Message("user", "Thank you!"),
    )
    found = breaks("qwen3", talk, WEATHER)
    # Within the turn thoughts stay, so the call and its result are not computed again.
    assert [(b.turn, b.message, b.role, b.in_prompt) for b in found] == [(4, 5, "user", True)]
    assert found[0].was.startswith("hink>\nI must look.")
    assert str(found[0]).startswith("message 5 (user) changes the prompt of turn 4: ")
    assert reply_text(load("qwen3"), talk[4]) == (
        "<think>\nNow I know.\n</think>\n\nIt is 12 degrees."
    )


def test_glm_keeps_its_thoughts_within_a_turn() -> None:
    """White space before them is the reply's own, so that it begins as the template writes it."""
    first, result = called("Köln", "1")
    thinking = replace(first, reasoning="I must look.")
    template = load("glm4.6")
    prompts = [template.render(Call(TALK[:2] + rest)) for rest in ((), (thinking, result))]
    written = "\n<think>I must look.</think>\n" + template.tool_format.write(first.tool_calls)
    assert prompts[1].startswith(prompts[0] + written)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_of_the_reply_does_not_change_the_prompt(name: str) -> None:
    template = load(name)
    call = Call(TALK, tools=(WEATHER, CLOCK))
    prompt = template.render(call)
    for fields in ({"tool_choice": "any"}, {"parallel_tool_calls": True}, {"max_tokens": 3}):
        assert template.render(replace(call, **fields)) == prompt  # type: ignore[arg-type]
    assert load(name).render(call) == prompt


@pytest.mark.parametrize("name", NAMES)
def test_conversations_with_the_same_tools_share_a_prefix(name: str) -> None:
    template = load(name)
    one, two = (
        template.render(Call((SYSTEM, Message("user", text)), tools=(WEATHER, CLOCK)))
        for text in ("Abc", "Xyz")
    )
    shared = one.index("Abc")
    assert one[:shared] == two[:shared]
    assert "Tells the time." in one[:shared] and "Be brief." in one[:shared]


def test_a_template_that_counts_its_messages_breaks_at_every_one() -> None:
    counting = (
        "{{ messages | length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "[assistant]"
    )
    found = list(prefix_breaks(ChatTemplate(counting), Call(PLAIN)))
    assert [(b.turn, b.message, b.kept_chars) for b in found] == [(2, 3, 0), (4, 5, 0)]
    assert found[0].was.startswith("2[system]") and found[0].became.startswith("4[system]")
