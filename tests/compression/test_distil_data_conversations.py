"""Conversations as token documents, on real templates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import CHATML, END, write_tiny_gguf

from tierwise.compression.distillation.conversations import (
    Conversation,
    Document,
    Renderer,
    identified,
)
from tierwise.runtime.chat import Message, Tool, ToolCall
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.llama import Model
from tierwise.runtime.prompt_tokens import PromptTokenizer

TEMPLATES = Path(__file__).parents[1] / "templates"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "Tells the weather.", CITY)
CALL = Message("assistant", tool_calls=(ToolCall("get_weather", {"city": "Oslo"}, id="call00001"),))
TURNS = (
    Message("user", "Weather in Oslo?"),
    CALL,
    Message("tool", "4 degrees", tool_call_id="call00001", tool_name="get_weather"),
    Message("assistant", "It is 4 degrees."),
    Message("user", "Thanks"),
    Message("assistant", "You are welcome."),
)
TALK = Conversation(TURNS, "made", "group", tools=(WEATHER,))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Its template knows nothing of tools."""
    path = tmp_path_factory.mktemp("models") / "plain.gguf"
    with Model(write_tiny_gguf(path, chat_template=CHATML, layers=1), vocab_only=True) as model:
        yield model


def model_of(tmp_path: Path, template: str) -> Model:
    path = tmp_path / "model.gguf"
    return Model(write_tiny_gguf(path, chat_template=template, layers=1), vocab_only=True)


def spans(document: Document, model: Model) -> list[str]:
    """The texts of the answers."""
    out: list[str] = []
    before = False
    for token, learned in zip(document.tokens.tolist(), document.answer.tolist(), strict=True):
        if learned:
            text = model.piece(token).decode() or model.token_text(token)
            out = [*out[:-1], out[-1] + text] if before else [*out, text]
        before = learned
    return out


def whole(document: Document, model: Model) -> str:
    return "".join(
        (model.piece(token) or model.token_text(token).encode()).decode(errors="replace")
        for token in document.tokens.tolist()
    )


def test_answers_are_marked_with_their_end(plain: Model) -> None:
    (document,) = Renderer(plain, max_tokens=4000).documents(TALK)
    assert spans(document, plain) == [
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}' + END,
        "It is 4 degrees." + END,
        "You are welcome." + END,
    ]
    assert (document.source, document.group) == ("made", "group")
    assert document.tokens.dtype == "int32" and document.answer.dtype == bool
    assert len(document) == len(document.tokens) == len(document.answer)


def test_a_document_is_what_the_engine_sees(plain: Model) -> None:
    """Prompts token by token as calls have them, and replies as models write them."""
    renderer = Renderer(plain, max_tokens=4000)
    (document,) = renderer.documents(TALK)
    tokens, answer = document.tokens.tolist(), document.answer.tolist()
    prompt_of = PromptTokenizer(plain)
    for turn, message in enumerate(TALK.messages):
        if message.role == "assistant":
            prompt = list(prompt_of(renderer.template.render(TALK.call(turn))))
            assert tokens[: len(prompt)] == prompt
            assert answer[len(prompt)] and not answer[len(prompt) - 1]


def test_documents_cannot_be_changed(plain: Model) -> None:
    (document,) = Renderer(plain, max_tokens=4000).documents(TALK)
    with pytest.raises(ValueError, match="read-only"):
        document.tokens[0] = 1


@pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATES.glob("*.jinja")))
def test_every_template_gives_its_answers(tmp_path: Path, name: str) -> None:
    source = (TEMPLATES / name).read_text(encoding="utf-8")
    with model_of(tmp_path, source) as model:
        documents = list(Renderer(model, max_tokens=20_000).documents(TALK))
        told = [text for document in documents for text in spans(document, model)]
        assert len(told) == 3
        assert "get_weather" in told[0] and "Oslo" in told[0]
        begin = ChatTemplate.of(model).tool_format.answer
        assert told[1].startswith(f"{begin}It is 4 degrees.")
        assert told[2].startswith(f"{begin}You are welcome.")
        for document in documents:
            assert "Weather in Oslo?" in whole(document, model)
            assert not document.answer[0]


def test_templates_that_rewrite_earlier_turns_give_several_documents(tmp_path: Path) -> None:
    """Here, the latest reply is marked as such."""
    latest = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'assistant' %}*{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n"
    )
    talk = Conversation((*TURNS[:1], *TURNS[3:]), "chat", "group")
    with model_of(tmp_path, latest) as model:
        first, second = Renderer(model, max_tokens=4000).documents(talk)
        assert spans(first, model) == ["It is 4 degrees." + END]
        assert spans(second, model) == ["You are welcome." + END]
        assert "It is 4 degrees." in whole(second, model)


def test_what_is_too_long_is_cut_after_an_answer(plain: Model) -> None:
    (document,) = Renderer(plain, max_tokens=4000).documents(TALK)
    ends = [i for i in range(1, len(document)) if document.answer[i - 1] > document.answer[i]]
    (shorter,) = Renderer(plain, max_tokens=len(document) - 1).documents(TALK)
    assert len(shorter) == ends[-1] and shorter.answer[-1]
    assert spans(shorter, plain) == spans(document, plain)[:2]
    assert list(Renderer(plain, max_tokens=64).documents(TALK)) == []


def test_windows_go_on_where_a_document_was_cut(plain: Model) -> None:
    system = Message("system", "Be brief.")
    turns = [
        Message(role, f"{role} number {number}")
        for number in range(6)
        for role in ("user", "assistant")
    ]
    talk = Conversation((system, *turns), "transcripts", "group")
    renderer = Renderer(plain, max_tokens=150)
    assert sum(len(spans(one, plain)) for one in renderer.documents(talk)) < 6
    documents = list(renderer.documents(talk, windows=True))
    told = [text for document in documents for text in spans(document, plain)]
    assert told == [f"assistant number {number}{END}" for number in range(6)]
    assert all(len(document) <= 150 for document in documents) and len(documents) > 1
    assert all("Be brief." in whole(document, plain) for document in documents)


def test_windows_leave_out_what_never_fits(plain: Model) -> None:
    long = Message("assistant", "word " * 300)
    talk = Conversation((TURNS[0], long, *TURNS[4:]), "transcripts", "group")
    (document,) = Renderer(plain, max_tokens=150).documents(talk, windows=True)
    assert spans(document, plain) == ["You are welcome." + END]


def test_control_texts_in_answers_stay_text(plain: Model) -> None:
    said = f"The tag is {END} here."
    talk = Conversation((TURNS[0], Message("assistant", said)), "chat", "group")
    documents = list(Renderer(plain, max_tokens=400).documents(talk))
    assert spans(documents[0], plain)[0].startswith("The tag is ")
    ends = [t for t in documents[0].tokens[documents[0].answer].tolist() if plain.is_end(t)]
    assert len(ends) == 1


def test_results_find_their_calls() -> None:
    two = Message("assistant", tool_calls=(ToolCall("a", {}), ToolCall("b", {})))
    messages = list(
        identified([two, Message("tool", "1"), Message("tool", "2"), CALL, Message("tool", "3")])
    )
    assert [call.id for call in messages[0].tool_calls] == ["call00001", "call00002"]
    assert [m.tool_call_id for m in messages[1:3]] == ["call00001", "call00002"]
    assert messages[4].tool_call_id == CALL.tool_calls[0].id


def test_given_ids_are_kept() -> None:
    call = Message("assistant", tool_calls=(ToolCall("a", {}, id="x1"), ToolCall("b", {}, id="x2")))
    results = [Message("tool", "2", tool_call_id="x2"), Message("tool", "1", tool_call_id="x1")]
    assert list(identified([call, *results])) == [call, *results]


def test_another_answer_takes_over_the_ids() -> None:
    talk = replace(TALK, asked=(1, 5))
    other = Message("assistant", tool_calls=(ToolCall("get_weather", {"city": "Rome"}),))
    changed = talk.with_answer(1, other)
    assert changed.messages[1].tool_calls[0] == ToolCall(
        "get_weather", {"city": "Rome"}, id="call00001"
    )
    assert changed.asked == (5,) and talk.cut(5).asked == (1,)
    assert changed.written == (1,) and talk.written == ()
    assert TALK.asking_for_calls().asked == (1,)
