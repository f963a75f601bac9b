"""Documents from all sources together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_models import CHATML, write_scripted_gguf, write_tiny_gguf

from tierwise.compression.distillation.documents import (
    DataConfig,
    Document,
    collect_documents,
    split_documents,
    totals,
)
from tierwise.runtime.errors import ConfigError, UnsupportedModelError
from tierwise.runtime.llama import Model


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return write_tiny_gguf(folder / "tiny.gguf", chat_template=CHATML, layers=1, context=8192)


def gold(*, shares: dict[str, float] | None = None, **values: object) -> DataConfig:
    # A tiny vocabulary makes long documents. What packages say depends on the machine.
    usual = {"answers": "gold", "max_tokens": 6000, "tokens": 90_000}
    return DataConfig(**{**usual, "shares": {"packages": 0.0, **(shares or {})}, **values})


def contents(documents: Sequence[Document]) -> list[bytes]:
    return [document.tokens.tobytes() for document in documents]


def test_the_budget_is_shared(gguf: Path) -> None:
    documents = collect_documents(gguf, gold())
    sums = totals(documents)
    whole = sum(one.tokens for one in sums.values())
    assert 90_000 <= whole < 96_000
    shares = {name: one.tokens / whole for name, one in sums.items()}
    assert shares == {
        "agent": pytest.approx(10 / 65, abs=0.06),
        "python": pytest.approx(25 / 65, abs=0.06),
        "made": pytest.approx(30 / 65, abs=0.06),
    }
    assert all(0 < one.answer_tokens < one.tokens / 2 for one in sums.values())
    assert sum(one.documents for one in sums.values()) == len(documents)
    assert max(map(len, documents)) <= 6000


def test_the_same_config_gives_the_same_documents(gguf: Path) -> None:
    first = collect_documents(gguf, gold(tokens=15_000))
    assert contents(collect_documents(gguf, gold(tokens=15_000))) == contents(first)
    assert contents(collect_documents(gguf, gold(tokens=15_000, seed=1))) != contents(first)


def test_no_document_comes_twice(gguf: Path) -> None:
    found = contents(collect_documents(gguf, gold(tokens=150_000)))
    assert len(set(found)) == len(found)


def test_sources_that_run_dry_leave_their_share(gguf: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, you."}]
    mine.write_text("\n".join([json.dumps(talk)] * 3))
    (tmp_path / "notes.md").write_text("Some words of my own. " * 50)
    config = gold(transcripts=(mine,), corpus=(tmp_path / "notes.md",), shares={"agent": 0})
    sums = totals(collect_documents(gguf, config))
    assert sums["transcripts"].documents == 1  # the others are the same
    assert sums["corpus"].documents >= 1 and "agent" not in sums
    assert sums["made"].tokens + sums["python"].tokens > 80_000
    only = gold(shares=dict.fromkeys(["agent", "made", "python"], 0), corpus=config.corpus)
    assert set(totals(collect_documents(gguf, only))) == {"corpus"}


@pytest.mark.parametrize("answers", ["text", pytest.param("all", marks=pytest.mark.slow)])
def test_the_teacher_gives_answers(tmp_path: Path, answers: str) -> None:
    """One that says the same to everything, and calls with arguments that are nearly empty."""
    scripted = write_scripted_gguf(tmp_path / "scripted.gguf", "I do not know.")
    config = DataConfig(
        tokens=4_000,
        max_tokens=4000,
        answers=answers,  # type: ignore[arg-type]
        shares={"agent": 0, "python": 0, "packages": 0, "made": 0.4 if answers == "all" else 0},
        cache=tmp_path / "answers.jsonl",
    )
    steps: list[float] = []
    first = collect_documents(scripted, config, lambda _text, share: steps.append(share))
    assert set(totals(first)) == ({"made", "chat"} if answers == "all" else {"chat"})
    assert steps[-1] == 1.0 and steps == sorted(steps)
    with Model(scripted, vocab_only=True) as model:
        said = {
            b"".join(map(model.piece, one.tokens[one.answer].tolist()))
            for one in first
            if one.source == "chat"
        }
    assert said <= {b"I do not know." * count for count in (1, 2)}
    before = (tmp_path / "answers.jsonl").read_bytes()
    assert contents(collect_documents(scripted, config)) == contents(first)
    assert (tmp_path / "answers.jsonl").read_bytes() == before


def test_held_out_documents_are_of_other_groups(gguf: Path) -> None:
    documents = collect_documents(gguf, gold(tokens=150_000))
    train, held_out = split_documents(documents, 0.1)
    assert len(train) + len(held_out) == len(documents)
    assert not {one.group for one in train} & {one.group for one in held_out}
    assert 0.05 < len(held_out) / len(documents) < 0.25
    assert {one.source for one in held_out} == {"agent", "python", "made"}
    assert contents(split_documents(documents, 0.1)[1]) == contents(held_out)
    assert contents(split_documents(documents, 0.1, seed=1)[1]) != contents(held_out)
    assert split_documents(documents, 0.0)[1] == []


def test_what_makes_no_sense_is_refused(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no source of distillation data named 'wiki'; there are"):
        collect_documents(gguf, gold(shares={"wiki": 1.0}))
    nothing = dict.fromkeys(["agent", "python", "made"], 0.0)
    with pytest.raises(ConfigError, match="no source of distillation data is left"):
        collect_documents(gguf, gold(shares=nothing))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"bad\.jsonl', line 1"):
        collect_documents(gguf, gold(transcripts=(tmp_path / "bad.jsonl",)))
    with pytest.raises(ConfigError, match="there is no corpus file"):
        collect_documents(gguf, gold(corpus=(tmp_path / "none.txt",)))
    bare = write_tiny_gguf(tmp_path / "bare.gguf", chat_template=None, layers=1)
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        collect_documents(bare, gold())


def test_no_torch_is_needed() -> None:
    code = (
        "import sys, tierwise.compression.distillation.documents; "
        "print({'torch', 'transformers', 'langchain_core'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert run.stdout.strip() == "set()"
