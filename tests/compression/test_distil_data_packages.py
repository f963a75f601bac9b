"""Descriptions of installed packages as documents: clean, in a fixed order, and in small parts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tierwise.compression.distillation.documents import DataConfig, collect_documents
from tierwise.compression.distillation.package_texts import (
    LONGEST,
    SHORTEST,
    package_documents,
    package_texts,
)


def words(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def test_packages_that_say_something_are_read() -> None:
    texts = dict(package_texts())
    assert list(texts) == sorted(texts) and {"pytest", "numpy", "pydantic"} <= set(texts)
    assert all(len(text) >= SHORTEST for text in texts.values())
    assert not any(re.search("https?://", text) for text in texts.values())
    assert list(package_texts()) == list(texts.items())


def test_no_package_prevails_and_parts_are_short() -> None:
    found = list(package_documents(words, max_tokens=2_000, start=[7]))
    assert max(len(one) for one in found) == LONGEST
    assert all(one.tokens[0] == 7 and not one.answer[0] and one.answer[1:].all() for one in found)
    groups = [one.group for one in found]
    first = groups[: len(set(groups))]
    assert len(set(first)) == len(first)  # every package once before any of them again
    assert max(map(groups.count, set(groups))) <= 6
    bare = next(package_documents(words, max_tokens=100, start=[]))
    assert len(bare) == 100 and not bare.answer[0] and bare.answer[1:].all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_they_are_a_source_among_others(tiny_gguf: Path, share: float) -> None:
    config = DataConfig(tokens=30_000, max_tokens=6000, answers="gold", shares={"packages": share})
    sources = {one.source for one in collect_documents(tiny_gguf, config)}
    assert ("packages" in sources) == bool(share) and "made" in sources
