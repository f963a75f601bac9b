"""Calibration and held-out text: our tasks as a model sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import CHATML, CHATML_TOOLS, END, START

from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.texts import chat_documents, take_tokens
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.harmony import HarmonyParser
from tierwise.runtime.llama import Model
from tierwise.runtime.reply_parser import ReplyParser


@pytest.mark.parametrize("source", [CHATML, CHATML_TOOLS])
def test_documents_are_prompts_with_their_right_answers(source: str) -> None:
    template = ChatTemplate(source)
    tasks = generate_tasks(24, split="calibration")
    documents = chat_documents(tasks, template)
    assert len(documents) == len(tasks)
    for task, document in zip(tasks, documents, strict=True):
        prompt = template.render(task.call)
        assert document.startswith(prompt) and prompt.endswith(f"{START}assistant\n")
        answer = document.removeprefix(prompt)
        assert answer and END not in answer
        # The answer in the model's own form is read back as the right one.
        if task.expected.tool_calls:
            parser = ReplyParser(task.call, template.tool_format)
            parser.push(answer)
            parsed = parser.finish()
            assert not parsed.text.strip()
            found = [(call.name, call.arguments) for call in parsed.tool_calls]
            assert found == [(call.name, call.arguments) for call in task.expected.tool_calls]
        else:
            assert answer == task.expected.text


def test_of_gpt_oss_the_answer_names_its_channel() -> None:
    path = Path(__file__).parents[1] / "templates" / "gpt-oss.jinja"
    template = ChatTemplate(path.read_text(encoding="utf-8"))
    for task in generate_tasks(24, split="calibration"):
        (document,) = chat_documents([task], template)
        parser = HarmonyParser(task.call)
        parser.push(document.removeprefix(template.render(task.call)))
        parsed = parser.finish()
        assert parsed.text == ("" if task.expected.tool_calls else task.expected.text)
        found = [(call.name, call.arguments) for call in parsed.tool_calls]
        assert found == [(call.name, call.arguments) for call in task.expected.tool_calls[:1]]


def test_no_tasks_no_documents() -> None:
    assert chat_documents([], ChatTemplate(CHATML)) == ()


def test_calibration_and_held_out_text_share_no_question() -> None:
    def questions(split: str, seed: int) -> set[str]:
        tasks = generate_tasks(48, seed=seed, split=split)  # type: ignore[arg-type]
        return {task.call.messages[-1].content for task in tasks}

    assert not questions("calibration", 0) & questions("test", 0)
    assert questions("test", 0) != questions("test", 1_000_000)


def test_a_models_own_template_will_do(tiny_gguf: Path) -> None:
    with Model(tiny_gguf, vocab_only=True) as model:
        template = ChatTemplate.of(model)
        (document,) = chat_documents(generate_tasks(1), template)
        tokens = model.tokenize(document)
        assert tokens[0] == model.tokenize(START)[0]
        assert b"".join(map(model.piece, tokens)).decode() in document.replace(START, "").replace(
            END, ""
        )


@pytest.mark.parametrize(
    ("limit", "taken"),
    [
        (0, []),
        (1, []),
        (2, [[1, 2]]),
        (3, [[1, 2, 3]]),
        (4, [[1, 2, 3]]),  # one token alone predicts nothing
        (5, [[1, 2, 3], [4, 5]]),
        (9, [[1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (99, [[1, 2, 3], [4, 5, 6, 7], [8, 9]]),
    ],
)
def test_tokens_are_taken_up_to_the_limit(limit: int, taken: list[list[int]]) -> None:
    documents = ([1, 2, 3], (4, 5, 6, 7), [8, 9])
    assert take_tokens(documents, limit) == taken
