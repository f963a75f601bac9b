"""English prose and code of many hands that every machine has: the descriptions of the packages
that are installed with Tierwise.

Made-up conversations are all of one kind. A student that reads nothing else comes nearer to its
teacher on them and moves away from it on everything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.metadata import distributions

from tierwise.compression.distillation.conversations import Document

SHORTEST = 800
"""Characters; shorter descriptions say little."""

LONGEST = 448
"""Tokens of a part."""

_PARTS = 6
"""Of one package at most, so that no one writer prevails."""

_LEAST = 64
"""Tokens of the last part of a description."""

_NOISE = re.compile(r"<[^<>]*>|!\[[^\]]*\]\([^)]*\)|https?://\S+|^[=\-*~^`#|\s]+$", re.MULTILINE)
"""Tags, pictures, addresses and rules: badges and tables of them fill many a description."""


def package_texts() -> Iterator[tuple[str, str]]:
    """Name and description of every installed package that has a long one, in order of names."""
    found: dict[str, str] = {}
    for one in distributions():
        metadata = one.metadata
        if not metadata or "Description" not in metadata:
            continue
        text = re.sub(r"\n{3,}", "\n\n", _NOISE.sub("", metadata["Description"])).strip()
        if len(text) >= SHORTEST:
            found[metadata["Name"].lower()] = text
    yield from sorted(found.items())


def package_documents(
    tokenize: Callable[[str], list[int]], *, max_tokens: int, start: list[int]
) -> Iterator[Document]:
    """Parts of the descriptions, the first of every package before the second of any.

    Args:
        tokenize: Text to tokens, without any that begin a text.
        max_tokens: Of the longest document.
        start: Tokens that begin every document.
    """
    size = min(max_tokens, LONGEST) - len(start)
    waiting = [(name, tokenize(text)) for name, text in package_texts()]
    for number in range(_PARTS):
        for name, tokens in waiting:
            part = tokens[number * size : (number + 1) * size]
            if len(part) >= _LEAST:
                ids = start + part
                learned = [False] * max(1, len(start)) + [True] * len(part)
                yield Document.of(ids, learned[: len(ids)], "packages", f"package-{name}")
