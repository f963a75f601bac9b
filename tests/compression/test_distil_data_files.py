"""The user's own transcripts and texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    message_to_dict,
)
from langchain_core.tools import tool as langchain_tool
from langchain_core.utils.function_calling import convert_to_openai_tool

from tierwise.compression.distillation.corpus import corpus_documents, corpus_files
from tierwise.compression.distillation.overlap import overlap
from tierwise.compression.distillation.transcripts import read_transcripts
from tierwise.runtime.chat import Message, ToolCall
from tierwise.runtime.errors import ConfigError

CALL = {"name": "get_weather", "args": {"city": "Oslo"}, "id": "c1"}
LANGCHAIN = [
    SystemMessage("Be brief."),
    HumanMessage([{"type": "text", "text": "Weather in "}, {"type": "text", "text": "Oslo?"}]),
    AIMessage("", tool_calls=[CALL]),
    ToolMessage("4 degrees", tool_call_id="c1", name="get_weather"),
    AIMessage("It is 4 degrees."),
]
OPENAI = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": "4 degrees"},
    {"role": "assistant", "content": "It is 4 degrees."},
]
READ = (
    Message("system", "Be brief."),
    Message("user", "Weather in Oslo?"),
    Message("assistant", tool_calls=(ToolCall("get_weather", {"city": "Oslo"}, id="c1"),)),
    Message("tool", "4 degrees", tool_call_id="c1", tool_name="get_weather"),
    Message("assistant", "It is 4 degrees."),
)


@langchain_tool
def get_weather(city: str, days: int = 1) -> str:
    """Tells the weather."""
    return f"{city} {days}"


def written(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


@pytest.mark.parametrize(
    "messages",
    [
        OPENAI,
        [message_to_dict(message) for message in LANGCHAIN],
        [dumpd(message) for message in LANGCHAIN],
        [message.model_dump() for message in LANGCHAIN],
    ],
    ids=["openai", "message_to_dict", "dumpd", "model_dump"],
)
def test_messages_are_read_in_every_shape(tmp_path: Path, messages: list[Any]) -> None:
    path = written(tmp_path / "mine.jsonl", {"messages": messages}, "", messages)
    first, second = read_transcripts(path)
    assert first.messages == second.messages == READ
    assert (first.source, first.group) == ("transcripts", "transcripts-mine.jsonl-1")
    assert second.group == "transcripts-mine.jsonl-3"


@pytest.mark.parametrize(
    "tool",
    [
        convert_to_openai_tool(get_weather),
        convert_to_openai_tool(get_weather)["function"],
        {
            "name": "get_weather",
            "description": "Tells the weather.",
            "input_schema": get_weather.args_schema.model_json_schema(),  # type: ignore[union-attr]
        },
        {
            "title": "get_weather",
            "description": "Tells the weather.",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    ],
    ids=["openai", "bare", "anthropic", "schema"],
)
def test_tools_are_read_in_every_shape(tmp_path: Path, tool: dict[str, Any]) -> None:
    path = written(tmp_path / "mine.jsonl", {"messages": OPENAI, "tools": [tool]})
    ((read,),) = (one.tools for one in read_transcripts(path))
    assert (read.name, read.description) == ("get_weather", "Tells the weather.")
    assert set(read.parameters["properties"]) == {"city", "days"}
    assert read.parameters["type"] == "object" and read.parameters["required"] == ["city"]


def test_failed_tools_are_told(tmp_path: Path) -> None:
    messages = [message_to_dict(message) for message in LANGCHAIN]
    messages[3]["data"]["status"] = "error"
    (read,) = read_transcripts(written(tmp_path / "mine.jsonl", {"messages": messages}))
    assert read.messages[3].tool_failed


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"messages": [', r"not JSON \(Expecting .* at column \d+\).*mend or remove it"),
        ({"text": "Hi"}, "no messages in it. Write it as"),
        ({"messages": []}, "no messages in it"),
        (3, "no messages in it"),
        ({"messages": ["Hi"]}, "'Hi' is no message"),
        ({"messages": [USER]}, "no message of it is the assistant's.*Remove the line"),
        ({"messages": [{"role": "robot", "content": ""}]}, "role 'robot'; known are system"),
        ({"messages": [{"content": ""}]}, "role None"),
        ({"messages": [{"role": "user", "content": 3}]}, "content is 3"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "content of type 'image_url'.*Remove it",
        ),
        ({"messages": [{"role": "ai", "tool_calls": [{}]}]}, "tool call has no name"),
        (
            {"messages": [{"role": "ai", "tool_calls": [{"name": "f", "args": "{"}]}]},
            "arguments of the call of 'f' are not JSON",
        ),
        (
            {"messages": [{"role": "ai", "tool_calls": [{"name": "f", "args": "[1]"}]}]},
            "call of 'f' are no object",
        ),
        ({"messages": OPENAI, "tools": {}}, None),
        ({"messages": OPENAI, "tools": {"a": 1}}, "tools must be a list"),
        ({"messages": OPENAI, "tools": [{}]}, "is no tool: it has no name"),
        (
            {"messages": OPENAI, "tools": [{"name": "f", "parameters": "x"}]},
            "parameters of tool 'f' are no JSON schema",
        ),
    ],
)
def test_a_bad_line_is_named_with_its_cure(tmp_path: Path, line: Any, says: str | None) -> None:
    path = written(tmp_path / "mine.jsonl", {"messages": OPENAI}, line)
    if says is None:
        assert len(list(read_transcripts(path))) == 2
        return
    with pytest.raises(ConfigError, match=rf"(?s)mine\.jsonl', line 2: .*{says}"):
        list(read_transcripts(path))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl' cannot be read.*JSON lines"):
        list(read_transcripts(tmp_path / "none.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.jsonl' cannot be read"):
        list(read_transcripts(tmp_path / "binary.jsonl"))


# --- Corpus ---------------------------------------------------------------------------------------


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_a_corpus_is_cut_into_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 250)
    written(tmp_path / "b.jsonl", {"text": "y" * 40}, "", {"text": "z" * 10, "more": 1})
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.md").write_text("w" * 60)
    (tmp_path / "d.bin").write_text("left out")
    found = list(corpus_documents((tmp_path,), letters, max_tokens=101, start=[7]))
    assert [len(one) for one in found] == [101, 101, 51, 41, 61]
    for document in found:
        assert document.tokens[0] == 7 and not document.answer[0]
        assert document.answer[1:].all() and document.source == "corpus"
    assert found[0].group == found[1].group == "corpus-a.txt-0-0"
    without = list(corpus_documents((tmp_path / "a.txt",), letters, max_tokens=100, start=[]))
    assert [len(one) for one in without] == [100, 100, 50]
    assert not without[0].answer[0] and without[0].answer[1:].all()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.txt", r"there is no corpus file .*none\.txt'"),
        ("text.doc", r"ends in '\.doc'; readable are \.txt, \.md, \.jsonl"),
        ("empty", r"the folder .*empty' has no \.txt"),
    ],
)
def test_corpus_paths_are_checked(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "text.doc").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=says):
        corpus_files((tmp_path / name,))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not a JSON object"),
        ("[1]", "line 2: not a JSON object"),
        ({"content": "x"}, r"line 2: not a JSON object with a \"text\""),
        ({"text": 3}, r"line 2: \"text\" must be a text, not 3"),
    ],
)
def test_corpus_lines_are_checked(tmp_path: Path, line: Any, says: str) -> None:
    path = written(tmp_path / "mine.jsonl", {"text": "fine"}, line)
    with pytest.raises(ConfigError, match=says):
        list(corpus_documents((path,), letters, max_tokens=100, start=[]))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.txt' cannot be read"):
        list(corpus_documents((tmp_path / "binary.txt",), letters, max_tokens=100, start=[]))


# --- Overlap --------------------------------------------------------------------------------------


def test_overlap_finds_shared_words_in_a_row() -> None:
    questions = {
        "same": "What is the Area of a field that is 10 m wide?",
        "other": "Tell me a joke about seven grey cats and a single dog.",
        "short": "Hello there!",
    }
    documents = [
        "Somebody asked: what is the area of a field -- that is 10 m wide, they said.",
        "tell me a joke about seven grey mice and a single dog",
    ]
    found = overlap(documents, questions)
    assert (found.questions, found.touched) == (3, 1)
    assert found.examples == {"same": "what is the area of a field that"}
    assert found.share == pytest.approx(5 / (5 + 5 + 1))
    assert overlap(["oh, hello there"], questions).examples == {"short": "hello there"}
    assert overlap(documents, questions, n=4).touched == 2
    assert overlap([], {}).share == 0.0
