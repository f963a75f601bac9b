"""What a student is taught on: documents from several sources, to a budget of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import llama_cpp as lib
from pydantic import BaseModel, ConfigDict, Field

from tierwise.compression.distillation.agent_conversations import agent_conversations
from tierwise.compression.distillation.conversations import Conversation, Document, Renderer
from tierwise.compression.distillation.corpus import corpus_documents, corpus_files
from tierwise.compression.distillation.made_tools import made_clusters
from tierwise.compression.distillation.package_texts import package_documents
from tierwise.compression.distillation.plain_questions import plain_conversations
from tierwise.compression.distillation.teacher_answers import TeacherAnswers
from tierwise.compression.distillation.tool_requests import python_clusters, tool_conversations
from tierwise.compression.distillation.transcripts import read_transcripts
from tierwise.runtime.errors import ConfigError, UnsupportedModelError
from tierwise.runtime.llama import Model

__all__ = ["DataConfig", "Document", "Totals", "collect_documents", "split_documents", "totals"]

SHARES: Mapping[str, float] = {
    "agent": 0.1,
    "python": 0.25,
    "made": 0.4,
    "chat": 0.05,
    "packages": 0.2,
    "transcripts": 0.5,
    "corpus": 0.2,
}
"""Weights of the sources; those that are there share the budget by them."""

_BATCH = 24
"""Conversations that the teacher is given at once."""

_IDLE_BATCHES = 10
"""Batches without a new document after which a source counts as used up."""

Progress = Callable[[str, float], None]


class DataConfig(BaseModel):
    """What the documents are made of.

    Args:
        tokens: Of all documents together, about; the last one may run over.
        max_tokens: Of the longest document.
        shares: Weights of sources that differ from `SHARES`; 0 leaves one out.
        transcripts: Files of conversations (`read_transcripts`).
        corpus: Text files, or folders of them (`corpus_files`).
        answers: Which answers the teacher writes itself: "text" those that are no calls and have
            no one right answer; "all" every call as well; "gold" none, and sources that have no
            answers of their own are left out.
        cache: File in which the teacher's answers are kept.
        seed: Of all draws.
        threads: For the teacher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=600_000, ge=256)
    max_tokens: int = Field(default=768, ge=64)
    shares: Mapping[str, float] = Field(default_factory=dict)
    transcripts: tuple[Path, ...] = ()
    corpus: tuple[Path, ...] = ()
    answers: Literal["text", "all", "gold"] = "text"
    cache: Path | None = None
    seed: int = 0
    threads: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the documents of one source."""

    documents: int
    tokens: int
    answer_tokens: int


def collect_documents(
    model_gguf: Path, config: DataConfig, progress: Progress | None = None
) -> list[Document]:
    """Documents of all sources that are there, in random order.

    The same arguments give the same documents, as long as the same packages are installed (or
    their share is 0) and the teacher answers the same: its
    answers to calls in parallel may differ in rare ties, so keep the cache to repeat a run.
    No two documents are equal. A source that runs dry leaves its share to the others.

    Args:
        model_gguf: The teacher; its vocabulary and chat template make the documents.
        config: What to make.
        progress: Called with what is done and its share in 0..1.

    Raises:
        ConfigError: A share's name is unknown, or a transcript or corpus file is not right.
        ModelError: The model cannot be loaded, or has no chat template.
        DiskFullError: There is no room for the cache.
    """
    weights = _weights(config)
    for path in config.transcripts:  # wrong lines shall be known before hours of work
        for _ in read_transcripts(path):
            pass
    corpus_files(config.corpus)
    with (
        Model(model_gguf, vocab_only=True) as model,
        TeacherAnswers(model_gguf, config.cache, threads=config.threads) as teacher,
    ):
        renderer = Renderer(model, max_tokens=config.max_tokens)
        rng = random.Random(f"tierwise-distil-{config.seed}")
        sources = {name: _documents(name, config, model, renderer, teacher) for name in weights}
        taken = _take(sources, weights, config.tokens, progress)
    rng.shuffle(taken)
    return taken


def split_documents(
    documents: Sequence[Document], held_out: float = 0.05, *, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """Those to train on and those held out, by whole groups.

    Args:
        documents: From `collect_documents`.
        held_out: Share of each source's documents to hold out, about; at least one group of a
            source that has several.
        seed: Of the draw.
    """
    rng = random.Random(f"tierwise-held-out-{seed}")
    chosen: set[str] = set()
    for source in sorted({document.source for document in documents}):
        sizes: dict[str, int] = {}
        for document in documents:
            if document.source == source:
                sizes[document.group] = sizes.get(document.group, 0) + 1
        groups = sorted(sizes)
        rng.shuffle(groups)
        wanted = held_out * sum(sizes.values())
        for group in groups[:-1]:
            if wanted <= 0:
                break
            chosen.add(group)
            wanted -= sizes[group]
    train = [document for document in documents if document.group not in chosen]
    return train, [document for document in documents if document.group in chosen]


def totals(documents: Sequence[Document]) -> dict[str, Totals]:
    """Documents, tokens and answer tokens by source."""
    out: dict[str, Totals] = {}
    for document in documents:
        old = out.get(document.source, Totals(0, 0, 0))
        out[document.source] = Totals(
            old.documents + 1,
            old.tokens + len(document),
            old.answer_tokens + int(document.answer.sum()),
        )
    return out


def _weights(config: DataConfig) -> dict[str, float]:
    unknown = sorted(set(config.shares) - set(SHARES))
    if unknown:
        raise ConfigError(
            f"there is no source of distillation data named {unknown[0]!r}; there are "
            f"{', '.join(SHARES)}"
        )
    weights = {**SHARES, **config.shares}
    missing = {
        "transcripts": not config.transcripts,
        "corpus": not config.corpus,
        "chat": config.answers == "gold",
    }
    found = {
        name: weight
        for name, weight in weights.items()
        if weight > 0 and not missing.get(name, False)
    }
    if not found:
        raise ConfigError("no source of distillation data is left; give one a share above 0")
    return found


def _documents(
    name: str, config: DataConfig, model: Model, renderer: Renderer, teacher: TeacherAnswers
) -> Iterator[Document]:
    """A source's documents, perhaps without end, none of them twice."""
    if name in ("corpus", "packages"):
        start = [model.bos] if lib.llama_vocab_get_add_bos(model.vocab) else []
        tokenize = partial(model.tokenize, special=False)
        if name == "packages":
            yield from package_documents(tokenize, max_tokens=config.max_tokens, start=start)
        else:
            yield from corpus_documents(
                config.corpus, tokenize, max_tokens=config.max_tokens, start=start
            )
        return
    seen: set[bytes] = set()
    idle = 0
    conversations = _conversations(name, config)
    while idle < _IDLE_BATCHES and (batch := list(islice(conversations, _BATCH))):
        idle += 1
        for conversation in _answered(batch, config, teacher):
            try:
                made = list(renderer.documents(conversation, windows=name == "transcripts"))
            except UnsupportedModelError:  # this model's template has no such conversations
                continue
            for document in made:
                key = document.tokens.tobytes()
                if key not in seen:
                    seen.add(key)
                    idle = 0
                    yield document


def _answered(
    batch: list[Conversation], config: DataConfig, teacher: TeacherAnswers
) -> list[Conversation]:
    if config.answers == "gold":
        return batch
    if config.answers == "all":
        batch = [one.asking_for_calls() if one.source != "transcripts" else one for one in batch]
    return teacher.fill(batch)


def _conversations(name: str, config: DataConfig) -> Iterator[Conversation]:
    rng = random.Random(f"tierwise-distil-{name}-{config.seed}")
    if name == "agent":
        return agent_conversations(config.seed)
    if name == "python":
        return tool_conversations(python_clusters(rng), "python", rng)
    if name == "made":
        return tool_conversations(made_clusters(rng), "made", rng)
    if name == "chat":
        return plain_conversations(config.seed)
    return (one for path in config.transcripts for one in read_transcripts(path))


def _take(
    sources: Mapping[str, Iterator[Document]],
    weights: Mapping[str, float],
    budget: int,
    progress: Progress | None,
) -> list[Document]:
    """From the source that lags furthest behind its share, until the budget is used."""
    taken: list[Document] = []
    used = dict.fromkeys(sources, 0)
    going = dict(sources)
    while going and sum(used.values()) < budget:
        name = min(going, key=lambda one: used[one] / weights[one])
        document = next(going[name], None)
        if document is None:
            del going[name]
            continue
        taken.append(document)
        used[name] += len(document)
        if progress is not None:
            done = sum(used.values())
            progress(f"{done:,} of {budget:,} tokens", min(1.0, done / budget))
    return taken
