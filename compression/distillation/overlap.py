"""How much of a test set stands in what was learned from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

N_GRAM = 8
"""Words. Eight in a row are rarely the same by chance, and paraphrases by template show."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """What `overlap` found.

    Args:
        questions: How many were looked at.
        touched: How many share an n-gram with the documents.
        share: Of all n-grams of the questions, those that the documents have too.
        examples: Ids of touched questions, with one n-gram that is shared.
    """

    questions: int
    touched: int
    share: float
    examples: Mapping[str, str]


def overlap(documents: Iterable[str], questions: Mapping[str, str], n: int = N_GRAM) -> Overlap:
    """Which questions share n words in a row with any document.

    Case and punctuation do not count. A question of fewer than n words counts as one n-gram.

    Args:
        documents: Texts that were learned from.
        questions: Texts of the test, by id.
        n: Words in a row.
    """
    wanted = {name: _grams(text, n) for name, text in questions.items()}
    lengths = {len(gram) for grams in wanted.values() for gram in grams}
    every = {gram for grams in wanted.values() for gram in grams}
    found: set[tuple[str, ...]] = set()
    for document in documents:
        words = _words(document)
        for length in lengths:
            slices = (words[at:] for at in range(length))
            found.update(gram for gram in zip(*slices, strict=False) if gram in every)
    examples = {}
    for name, grams in wanted.items():
        shared = next((gram for gram in grams if gram in found), None)
        if shared is not None:
            examples[name] = " ".join(shared)
    total = sum(len(grams) for grams in wanted.values())
    same = sum(gram in found for grams in wanted.values() for gram in grams)
    return Overlap(len(questions), len(examples), same / total if total else 0.0, examples)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = _words(text)
    if len(words) < n:
        return [tuple(words)] if words else []
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
