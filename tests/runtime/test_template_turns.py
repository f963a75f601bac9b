"""Turns that are rendered one by one give exactly the text of the whole template."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import CHATML, CHATML_TOOLS

from tierwise.runtime import template_turns
from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import UnsupportedModelError
from tierwise.runtime.template_sandbox import Sandbox
from tierwise.runtime.template_turns import TurnTemplate

TEMPLATES = Path(__file__).parents[1] / "templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
WEATHER = Tool(
    "get_weather",
    "Tells the weather.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def called(city: str, call_id: str) -> tuple[Message, Message]:
    call = ToolCall("get_weather", {"city": city}, id=call_id)
    result = Message("tool", f"{city}: 12°", tool_call_id=call_id, tool_name="get_weather")
    return Message("assistant", tool_calls=(call,)), result


TALK = (
    Message("system", "Be brief."),
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

LOOP = "{{% for m in messages %}}{}{{% endfor %}}"


def source_of(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def written(template: ChatTemplate, call: Call) -> str:
    """The prompt, or why it is refused."""
    try:
        return template.render(call)
    except UnsupportedModelError as error:
        return str(error)


def in_turns(source: str) -> TurnTemplate | None:
    return TurnTemplate.of(Sandbox(), source)


@pytest.mark.parametrize("name", NAMES)
def test_conversations_that_go_on_read_as_the_whole_template_writes_them(name: str) -> None:
    source = source_of(name)
    for talk in (TALK, PLAIN, PLAIN[1:]):
        known, whole = (ChatTemplate(source, bos="<s>", eos="</s>") for _ in range(2))
        whole._turns = None
        for end in range(2, len(talk) + 1):
            for tools in ((), (WEATHER,)):
                call = Call(talk[:end], tools=tools)
                assert written(known, call) == written(whole, call)


def test_which_templates_are_rendered_in_turns() -> None:
    assert {name for name in NAMES if in_turns(source_of(name))} == {
        "phi3.5",
        "phi4-mini",
        "smollm2",
    }


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.role }}: {{ m['content'] | trim }}\n",
        "{% if loop.first %}^{% endif %}{{ m.content }}{% if not loop.last %},{% endif %}",
        "{{ bos_token if m.role == 'user' }}{{ m.content }}{{ m.tool_calls }}{{ m.nothing }}",
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ m.content }}",
        "{% if m.role == 'x' %}{{ raise_exception('no x') }}{% endif %}{{ m.content.upper() }}",
    ],
)
def test_bodies_that_look_at_their_message_alone(body: str) -> None:
    around = (
        "{{ messages | length }}{{ tools }}",
        "{{ messages and messages[-1].role }}{{ eos_token }}",
    )
    source = f"{around[0]}{LOOP.format(body)}{around[1]}"
    sandbox = Sandbox()
    turns, whole = TurnTemplate.of(sandbox, source), sandbox.template(source)
    assert turns is not None
    said = [{"role": r, "content": c} for r, c in (("system", "S "), ("user", " u"), ("ai", "A"))]
    calling = {"role": "ai", "content": "", "tool_calls": [{"id": "1"}]}
    other = {"role": "system", "content": "T"}
    for messages in ([], said[:1], said[:2], said, [*said, calling, calling], [other, *said[1:]]):
        known = {"messages": messages, "tools": ["t"], "bos_token": "<s>", "eos_token": "</s>"}
        for _ in range(2):
            assert turns.render(known) == sandbox.run(whole, known)


@pytest.mark.parametrize(
    "source",
    [
        LOOP.format("{{ loop.index }}"),
        LOOP.format("{{ loop['first'] }}"),
        LOOP.format("{{ loop.previtem }}"),
        LOOP.format("{% set x = 1 %}{{ m.content }}"),
        LOOP.format("{{ messages[1].content }}"),
        LOOP.format("{{ messages[False].content }}"),
        LOOP.format("{{ messages[0:1] }}"),
        LOOP.format("{{ messages | length }}"),
        LOOP.format("{{ tools }}"),
        LOOP.format("{{ strftime_now('%d') }}"),
        LOOP.format("{% for c in m.calls %}{{ loop.first }}{% endfor %}"),
        LOOP.format("{% if m.role == 'user' %}{% break %}{% endif %}{{ m.content }}"),
        LOOP.format(""),
        "{% set x = namespace(n=0) %}" + LOOP.format("{{ m.content }}"),
        "{% set messages = messages[1:] %}" + LOOP.format("{{ m.content }}"),
        "{% macro say(x) %}{{ x }}{% endmacro %}" + LOOP.format("{{ m.content }}"),
        LOOP.format("{{ m.content }}") * 2,
        "{% if tools %}" + LOOP.format("{{ m.content }}") + "{% endif %}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% else %}none{% endfor %}",
        "{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
        "{% for a, b in messages %}{{ a }}{% endfor %}",
        "{% for loop in messages %}{{ loop.first }}{% endfor %}",
        CHATML_TOOLS,
    ],
)
def test_templates_whose_turns_depend_on_more_are_rendered_whole(source: str) -> None:
    assert in_turns(source) is None


def test_a_turn_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    class Counting(Sandbox):
        def run(self, template, variables):  # type: ignore[no-untyped-def]
            runs.append(variables.get("message", {}).get("content", "around"))
            return super().run(template, variables)

    turns = TurnTemplate.of(Counting(), CHATML)
    assert turns is not None
    messages = [{"role": "user", "content": text} for text in ("a", "b", "a")]
    known = {"messages": messages, "add_generation_prompt": True}
    first = turns.render(known)
    assert runs == ["a", "b", "around"]
    assert turns.render(known) == first and not runs[3:]  # nor what stands around the turns
    messages.append({"role": "assistant", "content": "c"})
    turns.render(known)
    assert runs[3:] == ["c"]
    turns.render({**known, "add_generation_prompt": False})
    assert runs[4:] == ["around"]
    monkeypatch.setattr(template_turns, "REMEMBERED_CHARS", 10)
    messages.append({"role": "user", "content": "d"})
    turns.render(known)
    assert turns.render(known).count("<|im_start|>") == 6
    assert sum(len(text) for known in turns._known.values() for text in known.values()) < 200


def test_a_refusal_stays_one() -> None:
    source = LOOP.format("{{ raise_exception('no ' + m.content) if m.role == 'tool' }}x")
    turns = in_turns(source)
    assert turns is not None
    for _ in range(2):
        with pytest.raises(Exception, match="no way"):
            turns.render({"messages": [{"role": "tool", "content": "way"}]})


def test_escapes_are_refused_in_turns_too() -> None:
    turns = in_turns(LOOP.format("{{ m.content.__class__.__mro__ }}"))
    assert turns is not None
    with pytest.raises(Exception, match="may not read the attribute"):
        turns.render({"messages": [{"role": "user", "content": "x"}]})
