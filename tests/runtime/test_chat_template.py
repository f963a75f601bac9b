"""Chat templates: foreign code in a sandbox, and one conversation in many dialects."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from tiny_models import CHATML, CHATML_TOOLS

from tierwise.runtime.chat import Call, Message, Reasoning, Tool, ToolCall
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import UnsupportedModelError
from tierwise.runtime.llama import Model
from tierwise.runtime.tool_format import HERMES, JSON_LINES
from tierwise.runtime.tool_prompt import DEMONSTRATION

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "Tells the weather.", CITY)
CLOCK = Tool("get_time", "Tells the time.", {"type": "object", "properties": {}})

TEMPLATES = Path(__file__).parents[1] / "templates"

SYSTEM = Message("system", "Be brief.")
HELLO = Message("user", "Hello")
ASK = Message("user", "Weather in Köln & <Bonn>?")
CALLING = Message("assistant", tool_calls=(ToolCall("get_weather", {"city": "Köln"}, id="1"),))
RESULT = Message("tool", "12 degrees", tool_call_id="1", tool_name="get_weather")
ANSWER = Message("assistant", "It is 12 degrees.")

PICKY = (
    # Gemma's way: no system role, and the roles take turns.
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def render(source: str, *messages: Message, tools: tuple[Tool, ...] = (), **call: object) -> str:
    made = Call(messages, tools=tools)
    return ChatTemplate(source, bos="<s>", eos="</s>").render(replace(made, **call))  # type: ignore[arg-type]


# --- Foreign code ---------------------------------------------------------------------------------

ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch PWNED').read() }}",
    "{{ lipsum.__globals__['os'].system('touch PWNED') }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.append.__self__.__class__.__base__.__subclasses__() }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ ('{0.__class__}' | format_map({})) }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
    "{{ messages.clear() }}",
    "{% set _ = messages[0].update({'role': 'system'}) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_templates_cannot_leave_the_sandbox(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedModelError) as caught:
        render(source, HELLO)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    leaked = str(caught.value)
    assert "<class" not in leaked and "root:" not in leaked and "<module" not in leaked


def test_a_call_is_not_changed_by_its_template() -> None:
    source = "{% for m in messages %}{% set m = {'role': 'x'} %}{{ m.role }}{% endfor %}"
    assert render(source, HELLO) == "x"
    assert HELLO.role == "user"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0]['content'] + 1 }}",  # TypeError
        "{{ 1 / 0 }}",
        "{{ messages[7]['content'] }}",  # UndefinedError
        "{{ range(100000000) | list }}",  # OverflowError: the sandbox's own limit
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",  # RecursionError
        "{{ strftime_now(3) }}",
        "{{ raise_exception('I am particular') }}",
    ],
)
def test_a_template_that_fails_is_an_unsupported_model(source: str) -> None:
    with pytest.raises(UnsupportedModelError, match="refuses this conversation"):
        render(source, HELLO)


def test_the_reason_of_a_refusal_is_told() -> None:
    with pytest.raises(UnsupportedModelError, match="I am particular"):
        render("{{ raise_exception('I am particular') }}", HELLO)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ messages", "{% for m in messages %}", "{% x %}"]
)
def test_a_broken_template_is_named_when_it_is_read(source: str) -> None:
    with pytest.raises(UnsupportedModelError, match="template is broken"):
        ChatTemplate(source)


@pytest.mark.parametrize("source", [None, ""])
def test_a_missing_template_says_what_to_use(source: str | None) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no chat template.*instruct"):
        ChatTemplate(source)


def test_what_transformers_offers_is_there() -> None:
    assert render("{{ bos_token }}|{{ eos_token }}", HELLO) == "<s>|</s>"
    assert len(render("{{ strftime_now('%Y') }}", HELLO)) == 4
    assert render("{% for m in messages %}{% break %}{% endfor %}ok", HELLO) == "ok"
    assert render("  {% if true %}\nok{% endif %}", HELLO) == "ok"  # trim and lstrip blocks
    assert render("{{ {'a': '<ö>&\\''} | tojson }}", HELLO) == '{"a": "<ö>&\'"}'
    assert render("{{ [1] | tojson(indent=2) }}", HELLO) == "[\n  1\n]"


def test_the_time_of_day_stands_still() -> None:
    """Or no prompt that tells it would begin like the one before."""
    clock = "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}"
    first = render(clock, HELLO)
    assert first == render(clock, HELLO) and first.startswith(str(date.today())[:3])


def test_marks_for_training_are_left_out() -> None:
    """``{% generation %}`` is transformers' own; SmolLM3's template has it."""
    marked = "{%- generation -%} {{ m.content }} {%- endgeneration %}!"
    source = "{% for m in messages %}" + marked + "{% endfor %}"
    assert render(source, HELLO, ANSWER) == "Hello!It is 12 degrees.!"


def test_a_template_comes_from_the_model_s_file(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model:
        text = ChatTemplate.of(model).render(Call((HELLO,)))
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


# --- Dialects -------------------------------------------------------------------------------------


def test_plain_conversations_are_left_alone() -> None:
    assert render(CHATML, SYSTEM, HELLO, ANSWER, ASK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nIt is 12 degrees.<|im_end|>\n"
        "<|im_start|>user\nWeather in Köln & <Bonn>?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_no_system_role_moves_it_to_the_user() -> None:
    assert render(PICKY, SYSTEM, HELLO) == "<s>[user]Be brief.\n\nHello\n[assistant]"
    assert render(PICKY, SYSTEM) == "<s>[user]Be brief.\n[assistant]"
    assert render(PICKY, SYSTEM, HELLO, ANSWER, ASK).count("Be brief.") == 1


def test_no_system_message_is_left_out() -> None:
    rules = [Message("system", f"Rule {number}.") for number in range(3)]
    talk = (*rules[:2], HELLO, ANSWER, rules[2], ASK)
    for path in sorted(TEMPLATES.glob("*.jinja")):
        prompt = render(path.read_text(encoding="utf-8"), *talk)
        assert all(prompt.count(rule.content) == 1 for rule in rules), path.name


def test_a_later_system_message_leaves_the_first_where_it_is() -> None:
    """Qwen3.5 refuses it."""
    source = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    later = Message("system", "Be kind.")
    prompt = render(source, SYSTEM, later, HELLO, ANSWER, later, ASK)
    turns = f"[user]Hello[assistant]{ANSWER.content}[user]Be kind.[user]{ASK.content}"
    assert prompt == f"[system]Be brief.\n\nBe kind.{turns}"


def test_a_template_may_leave_turns_out() -> None:
    source = "{{ messages[0]['content'] }}|{{ messages[-1]['content'] }}"
    turns = [Message("user", "One"), Message("assistant", "Two"), Message("user", "Three")]
    assert render(source, Message("system", "Brief."), *turns) == "Brief.|Three"


def test_roles_that_must_take_turns_do() -> None:
    assert render(PICKY, HELLO, ASK) == f"<s>[user]Hello\n\n{ASK.content}\n[assistant]"
    with_tools = render(PICKY, SYSTEM, ASK, CALLING, RESULT, HELLO, tools=(WEATHER,))
    assert with_tools.endswith(
        '[assistant]{"name": "get_weather", "arguments": {"city": "Köln"}}\n'
        "[user]Result of get_weather: 12 degrees\n\nHello\n[assistant]"
    )


# --- Tools ----------------------------------------------------------------------------------------


def test_tool_formats_are_told_apart() -> None:
    assert ChatTemplate(CHATML_TOOLS).tool_format is HERMES
    assert ChatTemplate(CHATML).tool_format is JSON_LINES
    knows_other_tags = "{% if tools %}{{ tools }}{% endif %}[TOOL_CALLS]"
    assert ChatTemplate(knows_other_tags).tool_format is JSON_LINES


def test_a_native_template_gets_tools_and_calls_as_data() -> None:
    text = render(CHATML_TOOLS, SYSTEM, ASK, CALLING, RESULT, tools=(WEATHER, CLOCK))
    assert text.count(json.dumps(WEATHER.to_openai())) == 1
    assert text.count(json.dumps(CLOCK.to_openai())) == 1
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Köln"}}\n</tool_call><|im_end|>\n<|im_start|>tool\n12 degrees<|im_end|>' in text
    )
    assert "You can use these functions" not in text
    assert DEMONSTRATION[2].content not in text


def test_other_templates_get_a_prompt_and_a_demonstration() -> None:
    text = render(CHATML, SYSTEM, ASK, tools=(WEATHER, CLOCK))
    system, *turns = text.split("<|im_end|>\n")
    assert system.startswith("<|im_start|>system\nBe brief.\n\n")
    for tool in (WEATHER, CLOCK):
        assert tool.name in system and tool.description in system
    assert len(turns) == len(DEMONSTRATION) + 2  # the question, and where the reply starts
    assert turns[0] == f"<|im_start|>user\n{DEMONSTRATION[0].content}"
    assert turns[-2] == f"<|im_start|>user\n{ASK.content}"
    for turn in turns:
        assert not turn.startswith("<|im_start|>tool")


def test_without_a_system_message_the_prompt_makes_one() -> None:
    text = render(CHATML, ASK, tools=(WEATHER,))
    assert text.startswith("<|im_start|>system\nYou can use these functions:")


def test_results_and_failures_are_told_as_user_turns() -> None:
    failed = replace(RESULT, content="no such city", tool_failed=True)
    nameless = replace(RESULT, tool_name="")
    text = render(CHATML, ASK, CALLING, RESULT, CALLING, failed, CALLING, nameless)
    assert "<|im_start|>user\nResult of get_weather: 12 degrees<|im_end|>" in text
    assert "<|im_start|>user\nError of get_weather: no such city<|im_end|>" in text
    assert "<|im_start|>user\nResult of the function: 12 degrees<|im_end|>" in text


def test_text_before_a_call_is_kept() -> None:
    text = render(CHATML, ASK, replace(CALLING, content="Let me see."))
    assert 'assistant\nLet me see.\n{"name": "get_weather"' in text


def test_tools_that_may_not_be_used_are_not_described() -> None:
    assert render(CHATML, ASK, tools=(WEATHER,), tool_choice="none") == render(CHATML, ASK)


def test_how_tools_are_chosen_does_not_change_the_prompt() -> None:
    """So that all calls of one conversation share a cached prefix."""
    auto = render(CHATML, ASK, tools=(WEATHER,))
    assert render(CHATML, ASK, tools=(WEATHER,), tool_choice="any") == auto
    both = render(CHATML, ASK, tools=(WEATHER, CLOCK))
    assert render(CHATML, ASK, tools=(WEATHER, CLOCK), tool_choice="get_time") == both


@pytest.mark.parametrize("source", [CHATML, CHATML_TOOLS])
def test_a_response_schema_is_asked_for(source: str) -> None:
    schema = {"title": "Größe", **CITY}
    assert json.dumps(schema, ensure_ascii=False) in render(source, ASK, response_schema=schema)
    with_tools = render(source, ASK, tools=(WEATHER,), response_schema=schema)
    assert json.dumps(schema, ensure_ascii=False) in with_tools
    # Nothing to say about any JSON at all, or where a tool must be called anyway.
    assert render(source, ASK, response_schema={}) == render(source, ASK)
    must = render(source, ASK, tools=(WEATHER,), response_schema=schema, tool_choice="any")
    assert "Größe" not in must


@pytest.mark.parametrize("source", [CHATML, CHATML_TOOLS])
@pytest.mark.parametrize("tools", [(), (WEATHER, CLOCK)], ids=["no tools", "tools"])
@pytest.mark.parametrize("system", [(), (SYSTEM,)], ids=["no system", "system"])
def test_each_turn_goes_on_where_the_last_one_ended(
    source: str, tools: tuple[Tool, ...], system: tuple[Message, ...]
) -> None:
    """What the prefix cache lives on: prompt and reply of a turn begin the next turn's prompt."""
    twice = Message("assistant", tool_calls=(*CALLING.tool_calls, ToolCall("get_time", {}, id="2")))
    told = Message("tool", "noon", tool_call_id="2", tool_name="get_time")
    talk = (*system, HELLO, ANSWER, ASK, CALLING, RESULT, ANSWER, ASK, twice, RESULT, told, ANSWER)
    template = ChatTemplate(source)
    said = ""
    for index, message in enumerate(talk):
        if message.role != "assistant":
            continue
        prompt = template.render(Call(talk[:index], tools=tools))
        assert prompt.startswith(said)
        if message.tool_calls and source == CHATML_TOOLS and len(message.tool_calls) > 1:
            said = prompt  # this template writes several calls without its own separator
        else:
            said = prompt + (template.tool_format.write(message.tool_calls) or message.content)
    assert said.endswith(ANSWER.content)


# --- Reasoning ------------------------------------------------------------------------------------

KINDS = {
    "qwen3": ("may", "no", "may"),
    "glm4.6": ("may", "no", "may"),
    "gemma4": ("no", "no", "may"),
    "deepseek-r1-distill": ("open", "open", "open"),  # cannot be told
    "qwen2.5": ("no", "no", "no"),
}


@pytest.mark.parametrize("name", KINDS)
def test_whether_replies_begin_with_thoughts_depends_on_what_is_asked(name: str) -> None:
    template = ChatTemplate((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    kinds: tuple[Reasoning | None, ...] = (None, "off", "on")
    assert tuple(template.thinking(kind) for kind in kinds) == KINDS[name]
    prompts = [
        template.render(Call((Message("user", "Hi"),), reasoning=kind)).rstrip() for kind in kinds
    ]
    ends = [prompt.endswith(template.tool_format.thoughts.close) for prompt in prompts]
    assert ends[1] is (name in ("qwen3", "glm4.6", "gemma4"))
    assert ends[2] is False


def test_gpt_oss_is_told_how_hard_to_think() -> None:
    template = ChatTemplate((TEMPLATES / "gpt-oss.jinja").read_text(encoding="utf-8"))
    for kind, told in ((None, "medium"), ("off", "low"), ("on", "medium"), ("high", "high")):
        prompt = template.render(Call((Message("user", "Hi"),), reasoning=kind))  # type: ignore[arg-type]
        assert f"Reasoning: {told}\n" in prompt
