"""The teacher's answers, by a model whose answers are known, and their cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import write_scripted_gguf

from tierwise.compression.distillation.conversations import Conversation
from tierwise.compression.distillation.teacher_answers import TeacherAnswers
from tierwise.runtime.chat import Message, Tool, ToolCall
from tierwise.runtime.errors import ModelError

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "Tells the weather.", CITY)
SCRIPT = {
    "[oslo]": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    "[poem]": "Roses are red.",
    "[more]": "Violets too.",
    "[long]": "and so on and on, ",
}
ASKED = Message("assistant")
GOLD = Message("assistant", tool_calls=(ToolCall("get_weather", {"city": "Bern"}, id="call00001"),))


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted_gguf(
        tmp_path_factory.mktemp("models") / "scripted.gguf", SCRIPT, endless=["[long]"]
    )


def talk(*questions: str, gold: Message = ASKED, tools: tuple[Tool, ...] = ()) -> Conversation:
    messages = tuple(one for text in questions for one in (Message("user", text), gold))
    asked = tuple(range(1, len(messages), 2))
    return Conversation(messages, "chat", "group", tools=tools, asked=asked)


def test_turns_are_answered_in_order(scripted: Path) -> None:
    told: list[tuple[str, float]] = []
    with TeacherAnswers(scripted, None, threads=1) as teacher:
        filled = teacher.fill(
            [talk("[poem]", "[more]"), talk("[more]")], lambda *step: told.append(step)
        )
    assert [m.content for m in filled[0].messages] == [
        "[poem]", "Roses are red.", "[more]", "Violets too.",
    ]  # fmt: skip
    assert filled[1].messages[1].content == "Violets too."
    assert all(one.asked == () for one in filled)
    assert told == [("2 of 3 answers", pytest.approx(2 / 3)), ("3 of 3 answers", 1.0)]


def test_a_turn_that_calls_is_answered_by_a_call(scripted: Path) -> None:
    with TeacherAnswers(scripted, None, threads=1) as teacher:
        (filled,) = teacher.fill([talk("[oslo]", gold=GOLD, tools=(WEATHER,))])
        assert filled.messages[1].tool_calls == (
            ToolCall("get_weather", {"city": "Oslo"}, id="call00001"),
        )
        # And one that talks by words, whatever tools there are.
        (filled,) = teacher.fill([talk("[poem]", tools=(WEATHER,))])
        assert filled.messages[1] == Message("assistant", "Roses are red.")


def test_answers_without_an_end_are_not_learned_from(scripted: Path) -> None:
    with TeacherAnswers(scripted, None, threads=1) as teacher:
        (filled,) = teacher.fill([talk("[poem]", "[long]"), talk("[long]")])
    assert len(filled.messages) == 3  # the question is left, and renders to nothing more
    assert filled.messages[1].content == "Roses are red."


def test_answers_are_found_again(scripted: Path, tmp_path: Path) -> None:
    cache, gguf = tmp_path / "deep" / "answers.jsonl", tmp_path / "model.gguf"
    shutil.copy(scripted, gguf)
    conversations = [talk("[poem]", "[more]"), talk("[long]")]
    with TeacherAnswers(gguf, cache, threads=1) as teacher:
        first = teacher.fill(conversations)
    assert len(cache.read_text().splitlines()) == 3
    before = cache.read_bytes()
    with TeacherAnswers(gguf, cache, threads=1) as teacher:
        gguf.unlink()  # it is not even opened
        assert teacher.fill(conversations) == first
        with pytest.raises(ModelError):
            teacher.fill([talk("[more]")])
    assert cache.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-30],  # cut short in its last line
        lambda raw: raw.replace(b"Violets too.", b"Violets t00."),
        lambda raw: raw.replace(b'"digest"', b'"digset"', 1),
        lambda raw: b"\x00\xff\xfe" + raw[3:],
        lambda raw: b"[1, 2]\n" + raw.split(b"\n", 1)[1],
        lambda raw: b"",
    ],
)
def test_damaged_lines_are_answered_anew(scripted: Path, tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    cache = tmp_path / "answers.jsonl"
    conversations = [talk("[poem]", "[more]")]
    with TeacherAnswers(scripted, cache, threads=1) as teacher:
        first = teacher.fill(conversations)
    cache.write_bytes(damage(cache.read_bytes()))
    with TeacherAnswers(scripted, cache, threads=1) as teacher:
        assert teacher.fill(conversations) == first
    # What was mended is whole: nothing is missing any more.
    with TeacherAnswers(scripted, cache, threads=1) as teacher:
        before = cache.read_bytes()
        assert teacher.fill(conversations) == first
        assert cache.read_bytes() == before


def test_another_teacher_gives_answers_of_its_own(scripted: Path, tmp_path: Path) -> None:
    cache = tmp_path / "answers.jsonl"
    other = write_scripted_gguf(tmp_path / "other.gguf", {"[poem]": "The sea is blue."})
    with TeacherAnswers(scripted, cache, threads=1) as teacher:
        teacher.fill([talk("[poem]")])
    with TeacherAnswers(other, cache, threads=1) as teacher:
        (filled,) = teacher.fill([talk("[poem]")])
    assert filled.messages[1].content == "The sea is blue."
    keys = [json.loads(line)["key"] for line in cache.read_text().splitlines()]
    assert len(set(keys)) == 2


def test_equal_questions_are_answered_once(scripted: Path, tmp_path: Path) -> None:
    cache = tmp_path / "answers.jsonl"
    with TeacherAnswers(scripted, cache, threads=1) as teacher:
        filled = teacher.fill([talk("[poem]")] * 5)
    assert len(filled) == 5 and len(cache.read_text().splitlines()) == 1
