"""One vocabulary for all tiers: the same tokens as each tier's own, from any thread."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from family_factory import TierSpec, make_family
from tiny_models import CHATML, write_tiny_gguf

from tierwise.evaluation.texts import demonstration_tokens
from tierwise.runtime.chat import Call, Message, Tool
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import (
    EngineClosedError,
    FamilyIncompleteError,
    UnsupportedModelError,
)
from tierwise.runtime.family import Family
from tierwise.runtime.llama import Model
from tierwise.runtime.vocabulary import Vocabulary, usable_file

TURNS = tuple(
    Message("user" if turn % 2 == 0 else "assistant", f"the weather in Paris {turn}")
    for turn in range(9)
)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    small, large = (
        write_tiny_gguf(tmp_path / f"{layers}.gguf", layers=layers, chat_template=CHATML)
        for layers in (1, 2)
    )
    return make_family(tmp_path / "family", [TierSpec("small", small), TierSpec("large", large)])


def expected(family: Family, call: Call) -> tuple[int, ...]:
    """What the large tier makes of it by itself, in one piece."""
    with Model(family.path("large"), vocab_only=True) as model:
        return tuple(model.tokenize(ChatTemplate.of(model).render(call)))


def test_a_growing_conversation_has_the_tokens_of_its_whole_text(family: Family) -> None:
    vocabulary = Vocabulary(family)
    for turns in range(1, len(TURNS) + 1, 2):
        call = Call((Message("system", "be brief"), *TURNS[:turns]))
        assert vocabulary.prompt(call) == expected(family, call)
    vocabulary.close()


def test_tiers_that_were_taught_tools_are_not_shown_how_to_call_them(family: Family) -> None:
    vocabulary = Vocabulary(family)
    call = Call(TURNS[:1], tools=(Tool("get_weather", "The weather.", {"type": "object"}),))
    shown, plain = (vocabulary.prompt(call, taught_tools=taught) for taught in (False, True))
    assert shown == expected(family, call)
    with Model(family.path("large"), vocab_only=True) as model:
        assert len(shown) - len(plain) == demonstration_tokens(model) > 50
        template = ChatTemplate.of(model, demonstrates=False)
        assert plain == tuple(model.tokenize(template.render(call)))
    without = replace(call, tools=())
    assert vocabulary.prompt(without) == vocabulary.prompt(without, taught_tools=True)
    vocabulary.close()


def test_many_threads_ask_at_once(family: Family) -> None:
    vocabulary = Vocabulary(family)
    calls = [Call(TURNS[start:end]) for start in (0, 2) for end in (3, 5, 7, 9)]
    right = {len(c.messages): expected(family, c) for c in calls if c.messages[0] is TURNS[0]}
    wrong: list[Call] = []

    def work() -> None:
        for _ in range(20):
            for call in calls:
                known = right.get(len(call.messages))
                found = vocabulary.prompt(call)
                if call.messages[0] is TURNS[0] and found != known:
                    wrong.append(call)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    vocabulary.close()
    assert not wrong


def test_texts_are_tokenized_as_a_prompt_holds_them(family: Family) -> None:
    vocabulary = Vocabulary(family)
    prompt = vocabulary.prompt(Call(TURNS[:1]))
    text = vocabulary.tokenize("the weather in Paris 0")
    assert tuple(text) in {prompt[i : i + len(text)] for i in range(len(prompt))}
    vocabulary.close()


def test_the_next_tier_stands_in_for_one_that_is_gone(family: Family) -> None:
    call = Call(TURNS)
    family.path("small").unlink()
    vocabulary = Vocabulary(family)
    assert vocabulary.prompt(call) == expected(family, call)
    vocabulary.close()


def test_after_closing_nothing_is_read_again(family: Family) -> None:
    vocabulary = Vocabulary(family)
    vocabulary.prompt(Call(TURNS))
    vocabulary.close()
    vocabulary.close()
    with pytest.raises(EngineClosedError, match="was closed"):
        vocabulary.prompt(Call(TURNS))


def test_a_model_without_a_template_cannot_be_asked(tmp_path: Path) -> None:
    plain = write_tiny_gguf(tmp_path / "plain.gguf", layers=1, chat_template=None)
    vocabulary = Vocabulary(make_family(tmp_path / "family", [TierSpec("plain", plain)]))
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        vocabulary.prompt(Call(TURNS))
    assert vocabulary.tokenize("the")
    vocabulary.close()


def test_a_file_is_usable_if_it_is_what_the_manifest_says(family: Family, tmp_path: Path) -> None:
    tier = family.tier("small")
    path = family.path(tier)
    assert usable_file(family, tier) == path
    moved = path.rename(tmp_path / "moved.gguf")
    path.symlink_to(moved)
    assert usable_file(family, tier) == path
    path.unlink()
    with pytest.raises(FamilyIncompleteError, match="is missing"):
        usable_file(family, tier)
    path.mkdir()
    with pytest.raises(FamilyIncompleteError, match="is missing"):
        usable_file(family, tier)
    path.rmdir()
    path.write_bytes(b"short")
    with pytest.raises(FamilyIncompleteError, match=f"has 5 bytes, not {tier.bytes:,}"):
        usable_file(family, tier)
