"""Any dataset as padded batches of token numbers, in an order that a seed decides."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tierwise.runtime.errors import ConfigError

Batch = dict[str, Tensor]

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "labels")
"""What a model is called with; everything else in an example is left out."""

WINDOW = 16
"""Batches whose examples are put together by length, so that little is padding."""


@dataclass(frozen=True)
class Numbered:
    """A batch, and which examples of the dataset it has (none for a stream)."""

    batch: Batch
    examples: tuple[int, ...] = ()


class Batches:
    """Batches of a dataset, as often as they are asked for.

    Args:
        data: A sequence (or torch Dataset) or any iterable. Its examples are mappings with
            "text" and "label", pairs (text, label), or mappings with ``input_ids`` (one row, or
            a ready batch of two dimensions). What has no length is a stream: it is read as it
            comes, unshuffled, and never kept.
        size: Examples in a batch.
        tokenizer: Called with a text and ``truncation`` and ``max_length``; for texts only.
        max_length: Tokens of a text that are read.
        labels: Numbers of labels that are given as text (the config's ``label2id``).
        pad: The token that fills rows up.

    Raises:
        ConfigError: No examples, or ones that cannot be read.
    """

    def __init__(
        self,
        data: Iterable[Any],
        *,
        size: int,
        tokenizer: Any = None,
        max_length: int = 512,
        labels: Mapping[str, int] | None = None,
        pad: int = 0,
    ) -> None:
        self.size = size
        self._tokenizer, self._max_length = tokenizer, max_length
        self._labels, self._pad = labels or {}, pad
        self._stream: Iterable[Any] | None = None
        self._examples: list[Batch] = []
        if isinstance(data, Mapping):
            raise ConfigError(
                f"a dataset must be a row of examples, not a mapping with the keys "
                f"{sorted(map(str, data))}. Of columns make examples, such as [{{'text': …, "
                "'label': …}, …]; of several splits take one."
            )
        if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
            known: Any = data
            self._examples = [self._read(known[place]) for place in range(len(known))]
            if not self._examples:
                raise ConfigError("the dataset is empty; give it at least one example")
        elif isinstance(data, Iterable):
            self._stream = data
        else:
            raise ConfigError(
                f"a dataset must be a sequence or an iterable of examples, not {type(data)}"
            )

    @property
    def is_stream(self) -> bool:
        return self._stream is not None

    def __len__(self) -> int:
        """Batches in an epoch; 0 for a stream, which does not know."""
        ready = sum(example["input_ids"].ndim == 2 for example in self._examples)
        return ready + math.ceil((len(self._examples) - ready) / self.size)

    def epoch(self, seed: int | None = None) -> Iterator[Numbered]:
        """One pass. ``seed`` shuffles; None keeps the order of the dataset."""
        if self._stream is not None:
            yield from self._streamed(self._stream)
            return
        order = list(range(len(self._examples)))
        ready = [place for place in order if self._examples[place]["input_ids"].ndim == 2]
        single = [place for place in order if self._examples[place]["input_ids"].ndim == 1]
        groups: list[tuple[int, ...]] = [(place,) for place in ready]
        if seed is None:
            groups += [tuple(part) for part in _parts(single, self.size)]
        else:
            noise = random.Random(seed)
            noise.shuffle(single)
            for window in _parts(single, self.size * WINDOW):
                window.sort(key=lambda place: len(self._examples[place]["input_ids"]))
                groups += [tuple(part) for part in _parts(window, self.size)]
            noise.shuffle(groups)
        for group in groups:
            yield Numbered(self._collate([self._examples[place] for place in group]), group)

    def first(self, count: int, seed: int = 0) -> list[Batch]:
        """Some batches to measure with: ``count`` at most, chosen by the seed.

        Raises:
            ConfigError: There is none, as of a generator that was read before.
        """
        found = [numbered.batch for numbered in islice(self.epoch(seed), count)]
        if not found:
            raise ConfigError(
                "the dataset gives no examples to measure with; a generator can be read only "
                "once. Pass a list, or other data to this step."
            )
        return found

    def _streamed(self, stream: Iterable[Any]) -> Iterator[Numbered]:
        waiting: list[Batch] = []
        for raw in stream:
            example = self._read(raw)
            if example["input_ids"].ndim == 2:
                yield Numbered(example)
                continue
            waiting.append(example)
            if len(waiting) == self.size:
                yield Numbered(self._collate(waiting))
                waiting = []
        if waiting:
            yield Numbered(self._collate(waiting))

    def _read(self, raw: Any) -> Batch:
        if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[0], str):
            raw = {"text": raw[0], "label": raw[1]}
        if not isinstance(raw, Mapping):
            raise ConfigError(
                "an example must be a mapping with 'text' or 'input_ids', or a pair (text, "
                f"label); this one is {raw!r:.80}"
            )
        fields = dict(raw)
        if "labels" not in fields and "label" in fields:
            fields["labels"] = fields.pop("label")
        if "input_ids" not in fields:
            fields |= self._tokenized(fields)
        if isinstance(fields.get("labels"), str):
            fields["labels"] = self._number_of(fields["labels"])
        example = {
            key: torch.as_tensor(fields[key]) for key in INPUTS if fields.get(key) is not None
        }
        if example["input_ids"].ndim not in (1, 2) or not example["input_ids"].numel():
            raise ConfigError(
                "input_ids must be one row of token numbers, or a batch of rows; this example's "
                f"have the shape {tuple(example['input_ids'].shape)}"
            )
        example.setdefault("attention_mask", torch.ones_like(example["input_ids"]))
        return example

    def _tokenized(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        text = fields.get("text")
        if not isinstance(text, str):
            raise ConfigError(
                f"an example has neither 'text' nor 'input_ids', but {sorted(map(str, fields))}"
            )
        if self._tokenizer is None:
            raise ConfigError(
                "the dataset holds texts, and no tokenizer was given to read them: pass "
                "tokenizer=…, or examples with input_ids"
            )
        return dict(self._tokenizer(text, truncation=True, max_length=self._max_length))

    def _number_of(self, label: str) -> int:
        if label not in self._labels:
            known = ", ".join(self._labels) or "none"
            raise ConfigError(
                f"the model's config knows no label {label!r} (label2id has: {known}). Give "
                "numbers, or set the config's label2id."
            )
        return self._labels[label]

    def _collate(self, examples: Sequence[Batch]) -> Batch:
        if len(examples) == 1 and examples[0]["input_ids"].ndim == 2:
            return dict(examples[0])
        length = max(len(example["input_ids"]) for example in examples)
        fills = {"input_ids": self._pad, "labels": -100}
        batch = {}
        for key in INPUTS:
            rows = [example[key] for example in examples if key in example]
            if not rows:
                continue
            if len(rows) != len(examples):
                raise ConfigError(f"some examples have {key!r} and others have not")
            lengths = [len(example["input_ids"]) for example in examples]
            if [row.shape for row in rows] == [(tokens,) for tokens in lengths]:
                rows = [_filled(row, length, fills.get(key, 0)) for row in rows]
            elif len({row.shape for row in rows}) > 1:
                raise ConfigError(
                    f"{key} must have one number a token, or as many in every example; these have "
                    f"the shapes {sorted({tuple(row.shape) for row in rows})}"
                )
            batch[key] = torch.stack(rows)  # one number, or one for each class
        return batch


def made_up(model: nn.Module, *, rows: int, length: int, count: int, seed: int) -> list[Batch]:
    """Batches of random token numbers, for want of data. Real text measures better."""
    config: Any = model.config
    noise = torch.Generator().manual_seed(seed)
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    shape = (rows, max(2, length - 2))  # RoBERTa has two positions less than it says
    batches = []
    for _ in range(count):
        ids = torch.randint(config.vocab_size, shape, generator=noise)
        if config.pad_token_id is not None:
            ids[ids == config.pad_token_id] = (config.pad_token_id + 1) % config.vocab_size
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return batches


def _filled(row: Tensor, length: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(row, (0, length - len(row)), value=fill)


def _parts(items: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
