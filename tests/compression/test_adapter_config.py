"""Options and datasets of the adapter: what is taken, and what is refused with the cure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from adapter_models import examples, tiny_model

from tierwise.compression.adapter.adapter import ModelAdapter, adapt_model
from tierwise.compression.adapter.batches import Batches, made_up
from tierwise.compression.adapter.config import AdapterConfig
from tierwise.runtime.errors import ConfigError


def test_defaults_do_all_three_steps() -> None:
    config = AdapterConfig()
    assert config.steps == ("prune", "distill", "quantize")
    assert config.prune.layers and config.prune.channels and config.quantize.bits == 8
    assert AdapterConfig.make() == config


def test_options_may_be_mappings() -> None:
    config = AdapterConfig.make(
        prune={"layers": [1, 2], "heads": 0.5}, quantize={"bits": "adaptive", "budget": "4 MB"}
    )
    assert config.prune.layers == (1, 2) and config.quantize.budget == 4_000_000
    assert AdapterConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pruning": {}}, "'pruning'"),
        ({"prune": {"layers": 1.5}}, "1.5"),
        ({"prune": {"heads": -0.1}}, "-0.1"),
        ({"prune": {"sparsity": 0.4, "pattern": "2:4"}}, "which is 0.5"),
        ({"quantize": {"bits": 3}}, "3"),
        ({"quantize": {"choices": []}}, "choices"),
        ({"quantize": {"bits": "adaptive", "budget": "many"}}, "many"),
        ({"distill": {"temperature": 0}}, "temperature"),
        ({"distill": {"soft": 1.1}}, "1.1"),
        ({"distill": {"loss": "mse"}}, "forward_kl"),
        ({"distill": {"teacher": "cached", "hidden": 1.0}}, "hidden: 0"),
        ({"distill": {"precision": "fp16"}}, "bf16"),
        ({"steps": ["prune", "prune"]}, "once only"),
        ({"steps": ["quantize", "prune"]}, "write prune first"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_makes_no_sense(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig.make(**values)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        AdapterConfig().seed = 3  # type: ignore[misc]


def test_the_adapter_wants_its_own_config() -> None:
    with pytest.raises(ConfigError, match=r"AdapterConfig\.make"):
        ModelAdapter(tiny_model("bert"), {"prune": {}})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="adapt_model does not train"):
        adapt_model(tiny_model("bert"), AdapterConfig.make(prune={"gradual": True}))


def test_the_report_adds_up() -> None:
    model = tiny_model("bert")
    adapter = ModelAdapter(model).prune().quantize()
    first, second = adapter.report.steps
    assert (first.step, second.step) == ("prune", "quantize")
    assert first.parameters[1] == second.parameters[0] == second.parameters[1]
    assert adapter.report.parameters_removed == 1 - second.parameters[1] / first.parameters[0]
    assert adapter.report.bytes_saved == 1 - second.nbytes[1] / first.nbytes[0]
    assert str(adapter.report).startswith(f"prune: {first.parameters[0]:,} → ")


# --- datasets ---------------------------------------------------------------------------


class Words:
    """A tokenizer: every word is the number of its letters."""

    def __call__(self, text: str, *, truncation: bool, max_length: int) -> dict[str, Any]:
        assert truncation
        return {"input_ids": [len(word) for word in text.split()][:max_length]}


def whole(batches: Batches, seed: int | None = None) -> list[Any]:
    return [numbered.batch for numbered in batches.epoch(seed)]


@pytest.mark.parametrize(
    "example",
    [
        {"text": "a bb ccc", "label": 1},
        {"text": "a bb ccc", "label": "one"},
        ("a bb ccc", "one"),
        {"input_ids": [1, 2, 3], "labels": 1, "other": "x"},
        {"input_ids": torch.tensor([1, 2, 3]), "label": torch.tensor(1)},
    ],
)
def test_examples_of_every_kind(example: Any) -> None:
    labels = {"zero": 0, "one": 1}
    batches = Batches([example, ("dddd", "zero")], size=2, tokenizer=Words(), labels=labels)
    (batch,) = whole(batches)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_texts_are_cut() -> None:
    (batch,) = whole(Batches([("a b c d e", 0)], size=1, tokenizer=Words(), max_length=3))
    assert batch["input_ids"].shape == (1, 3)


def test_a_torch_dataset_and_ready_batches() -> None:
    class Data(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, place: int) -> dict[str, Any]:
            if place >= 5:
                raise IndexError
            return {"input_ids": torch.arange(1, place + 2)}

    assert len(whole(Batches(Data(), size=2))) == 3 == len(Batches(Data(), size=2))
    ready = [{"input_ids": torch.ones(3, 4, dtype=torch.long)} for _ in range(2)]
    batches = Batches(ready, size=16)
    assert [batch["input_ids"].shape for batch in whole(batches)] == [(3, 4), (3, 4)]
    assert len(batches) == 2


def test_labels_of_every_token_are_filled_up() -> None:
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3], "labels": [3]}]
    (batch,) = whole(Batches(rows, size=2, pad=9))
    assert batch["labels"].tolist() == [[1, 2], [3, -100]]
    assert batch["input_ids"].tolist() == [[1, 2], [3, 9]]


def test_labels_of_every_class_stay_as_they_are() -> None:
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [0, 1]}, {"input_ids": [3, 4], "labels": [1, 1]}]
    (batch,) = whole(Batches(rows, size=2))
    assert batch["labels"].tolist() == [[0, 1], [1, 1]]
    rows[1]["labels"] = [1, 1, 1]
    with pytest.raises(ConfigError, match="labels must have one number a token, or as many"):
        whole(Batches(rows, size=2))


def test_epochs_shuffle_by_their_seed() -> None:
    batches = Batches(examples(50), size=8)
    orders = [[one.examples for one in batches.epoch(seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(place for group in orders[2] for place in group) == list(range(50))
    padding = [float(1 - one["attention_mask"].float().mean()) for one in whole(batches, 1)]
    plain = [float(1 - one["attention_mask"].float().mean()) for one in whole(batches)]
    assert sum(padding) < 0.6 * sum(plain)


def test_a_stream_is_read_as_it_comes() -> None:
    came = 0

    def stream() -> Iterator[dict[str, Any]]:
        nonlocal came
        for row in examples(10):
            came += 1
            yield row

    batches = Batches(stream(), size=4)
    assert batches.is_stream and came == 0
    epoch = batches.epoch(0)
    next(epoch)
    assert came == 4
    assert [len(one.batch["input_ids"]) for one in epoch] == [4, 2]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "empty"),
        (3, "sequence or an iterable"),
        ({"text": ["x"], "label": [1]}, "not a mapping with the keys"),
        ([3], "mapping"),
        ([{"words": "x"}], "neither 'text' nor"),
        ([{"text": "x"}], "tokenizer"),
        ([{"input_ids": [[[1]]]}], "shape"),
        ([{"input_ids": []}], "shape"),
        ([{"input_ids": [1], "label": "spam"}], "label2id has: none"),
        ([{"input_ids": [1], "label": 1}, {"input_ids": [1]}], "others have not"),
    ],
)
def test_datasets_that_cannot_be_read(data: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        list(Batches(data, size=4).epoch())


def test_made_up_tokens_fit_the_model() -> None:
    model = tiny_model("roberta")
    (batch,) = made_up(model, rows=2, length=100, count=1, seed=0)
    assert batch["input_ids"].shape == (2, 38)
    assert int((batch["input_ids"] == 0).sum()) == 0  # no padding
    model(**batch)
    again = made_up(model, rows=2, length=100, count=1, seed=0)[0]
    assert torch.equal(batch["input_ids"], again["input_ids"])
