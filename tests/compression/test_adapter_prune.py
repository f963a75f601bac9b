"""Pruning any model: parts are really gone, the least missed first, and the rest still agrees."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapter_models import VOCABULARY, batch_of, examples, logits, tiny_model
from torch import nn

from tierwise.compression.adapter.adapter import ModelAdapter, adapt_model
from tierwise.compression.adapter.anatomy import find_stack, find_widths, only_layers
from tierwise.compression.adapter.batches import made_up
from tierwise.compression.adapter.compact import compact
from tierwise.compression.adapter.config import AdapterConfig, PruneOptions
from tierwise.compression.adapter.importance import (
    Reference,
    block_influence,
    layers_to_drop,
    measure_moments,
    unit_worth,
)
from tierwise.compression.adapter.prune import prune_model, units_left
from tierwise.compression.adapter.size import count_bytes, count_parameters, share_of_zeros
from tierwise.runtime.errors import ConfigError, UnsupportedModelError

CLASSIFIERS = ("bert", "roberta", "distilbert", "electra", "llama", "qwen2", "gemma")
MODELS = (*CLASSIFIERS, "llama-lm", "qwen3-lm", "gemma-lm")


def pruning(**options: Any) -> AdapterConfig:
    nothing = {"layers": 0.0, "channels": 0.0, "multiple": 1}
    return AdapterConfig.make(prune=nothing | options, steps=("prune",))


def silence(width: Any, unit: int) -> None:
    """Makes a head or channel say nothing."""
    block = width.block
    with torch.no_grad():
        width.out_of.weight[:, unit * block : (unit + 1) * block] = 0


# --- every shape ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_parts_are_really_gone(kind: str) -> None:
    model = tiny_model(kind)
    before = copy.deepcopy(model.state_dict())
    size, stored = count_parameters(model), count_bytes(model)
    adapter = ModelAdapter(model, pruning(layers=0.34, heads=0.5, channels=0.5)).prune()
    small = adapter.model
    assert len(find_stack(small).layers) == small.config.num_hidden_layers == 2
    assert all(width.units == 32 for width in find_widths(small, "channels"))
    heads = find_widths(small, "heads")
    assert all(width.units == find_widths(model, "heads")[0].units // 2 for width in heads)
    assert all(width.out_of.in_features == 16 for width in heads)
    assert count_parameters(small) < 0.75 * size
    assert count_bytes(small) < 0.75 * stored
    assert sum(p.numel() for p in small.parameters()) == count_parameters(small)
    assert logits(small, batch_of(small)).isfinite().all()
    (step,) = adapter.report.steps
    assert step.parameters == (size, count_parameters(small))
    assert step.zeros == share_of_zeros(small) < 0.05
    # The original is what it was.
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(find_stack(model).layers) == model.config.num_hidden_layers == 3


@pytest.mark.parametrize("kind", MODELS)
def test_what_says_nothing_goes_first_and_is_not_missed(kind: str) -> None:
    """Heads and channels whose output weights are zero go; the answers do not change at all."""
    model = tiny_model(kind)
    for name, gone in (("heads", [0]), ("channels", range(0, 64, 2))):
        for width in find_widths(model, name):
            for unit in gone:
                silence(width, unit)
    share = 1 / find_widths(model, "heads")[0].units
    small = ModelAdapter(model, pruning(heads=share, channels=0.5)).prune().model
    batch = batch_of(model)
    assert torch.allclose(logits(small, batch), logits(model, batch), atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_a_layer_that_does_nothing_goes_first(kind: str) -> None:
    model = tiny_model(kind, layers=4)
    layer = find_stack(model).layers[2]
    with torch.no_grad():
        for name in ("heads", "channels"):
            out = find_widths(model, name)[2].out_of
            out.weight.zero_()
            if out.bias is not None:
                out.bias.zero_()
    assert layer is find_stack(model).layers[2]
    batches = made_up(model, rows=4, length=16, count=2, seed=0)
    influence = block_influence(model, batches)
    assert min(range(4), key=influence.__getitem__) == 2
    assert layers_to_drop(model, batches, 1) == (2,)
    small = ModelAdapter(model, pruning(layers=0.25)).prune()
    assert small.report.steps[0].details["layers"] == [2]
    batch = batch_of(model)
    assert torch.allclose(logits(small.model, batch), logits(model, batch), atol=1e-4)


def test_a_language_model_still_writes() -> None:
    """The cache of keys and values finds the layers that are left."""
    small = adapt_model(tiny_model("qwen3-lm"), pruning(layers=(0,), heads=0.5))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        cached = small.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True)
        plain = small.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


def test_layers_by_number() -> None:
    model = tiny_model("bert")
    small = adapt_model(model, pruning(layers=(0, 2)))
    batch = batch_of(model)
    with only_layers(model, [1]):
        assert torch.equal(logits(small, batch), logits(model, batch))
    assert model.config.num_hidden_layers == 3
    for wrong in ((3,), (0, 1, 2), (-1,)):
        with pytest.raises(ConfigError, match="from 0 to 2"):
            adapt_model(model, pruning(layers=wrong))


def test_one_layer_stays() -> None:
    assert adapt_model(tiny_model("bert"), pruning(layers=0.99)).config.num_hidden_layers == 1


def test_layers_can_be_pruned_twice() -> None:
    adapter = ModelAdapter(tiny_model("bert", layers=4), pruning(layers=(1,)))
    adapter.prune().prune()
    assert adapter._layers == [0, 3]


def test_the_order_of_layers_is_that_of_their_loss() -> None:
    """The layer that goes is the one without which the answers move least."""
    model = tiny_model("bert", layers=3, seed=3)
    batches = made_up(model, rows=4, length=16, count=2, seed=0)
    reference = Reference(model, batches)
    losses = []
    for gone in range(3):
        with only_layers(model, [place for place in range(3) if place != gone]):
            losses.append(reference.divergence(model))
    assert reference.divergence(model) == pytest.approx(0, abs=1e-6)
    assert min(losses) > 1e-3
    assert layers_to_drop(model, batches, 1) == (losses.index(min(losses)),)


def test_a_channels_worth_is_what_is_missing_without_it() -> None:
    model = tiny_model("bert", layers=1)
    width = find_widths(model, "channels")[0]
    batches = made_up(model, rows=4, length=16, count=1, seed=0)
    seen: list[torch.Tensor] = []
    handle = width.out_of.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    moments = measure_moments(model, batches, [width.out_of])
    handle.remove()
    worth = unit_worth(width, width.out_of.weight, moments)
    x = seen[0].detach().reshape(-1, 64)
    missing = (x[:, 5:6] * width.out_of.weight[:, 5].detach()).square().sum(1).mean()
    assert float(worth[5]) == pytest.approx(float(missing), rel=1e-4)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_heads_worth_is_what_is_missing_without_it(kind: str) -> None:
    """What its columns say together: they may cancel."""
    model = tiny_model(kind, layers=1)
    width = find_widths(model, "heads")[0]
    batches = made_up(model, rows=4, length=16, count=1, seed=0)
    with torch.no_grad():  # a head that says x in all of its columns, half of it taken back
        block = width.out_of.weight[:, : width.block]
        block[:, 1::2] = -block[:, ::2]
        values = width.into[2]
        rows = width.block // (width.into[0].out_features // values.out_features)
        values.weight[1:rows:2] = values.weight[0:rows:2]
    seen: list[torch.Tensor] = []
    handle = width.out_of.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    moments = measure_moments(model, batches, [width.out_of], width.block)
    handle.remove()
    worth = unit_worth(width, width.out_of.weight, moments)
    x = seen[0].detach().reshape(-1, width.units, width.block)
    columns = width.out_of.weight.detach().reshape(-1, width.units, width.block)
    missing = torch.einsum("nub,hub->nuh", x, columns).square().sum(2).mean(0)
    assert torch.allclose(worth, missing, rtol=1e-4, atol=1e-5)
    assert float(worth[0]) == pytest.approx(0.0, abs=1e-5) and float(worth[1]) > 0.01


def test_padding_is_not_measured() -> None:
    model = tiny_model("bert", layers=1)
    width = find_widths(model, "channels")[0]
    batch = batch_of(model)
    batch["attention_mask"][:] = 1
    batch["attention_mask"][:, 5:] = 0
    short = {key: value[:, :5] for key, value in batch.items()}
    found = [
        measure_moments(model, [one], [width.out_of]).mean_squares(width.out_of)
        for one in (batch, short)
    ]
    assert torch.allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("share", "multiple", "left"), [(0.5, 1, 32), (0.3, 8, 48), (0.9, 16, 16), (0.999, 1, 1)]
)
def test_widths_are_multiples(share: float, multiple: int, left: int) -> None:
    width = find_widths(tiny_model("bert", layers=1), "channels")[0]
    assert units_left(width, share, multiple) == left


# --- embeddings -------------------------------------------------------------------------


def test_tokens_are_counted_in_data_alone() -> None:
    with pytest.raises(ConfigError, match="min_token_count: 2 counts tokens of data"):
        adapt_model(tiny_model("bert"), pruning(min_token_count=2))


def test_rare_tokens_share_a_row() -> None:
    model = tiny_model("bert")
    data = [{"input_ids": [3, 4, 5, 4, 3, 5]}, {"input_ids": [3, 4, 5, 9]}]
    adapter = ModelAdapter(model, pruning(min_token_count=2), data=data).prune()
    small = adapter.model
    old, new = model.get_input_embeddings(), small.get_input_embeddings()
    ids = torch.tensor([3, 4, 5, 0])  # 0 is the padding token
    assert torch.equal(new(ids), old(ids))
    assert torch.equal(new(torch.tensor(9)), new(torch.tensor(40)))
    # The row that all rare ones share is all but that of the one that was seen.
    assert torch.allclose(new(torch.tensor(9)), old(torch.tensor(9)), atol=0.05)
    assert adapter.report.steps[0].details == {"embedding_rows": 5, "embedding_rank": 32}
    assert count_parameters(model) - count_parameters(small) == (VOCABULARY - 5) * 32
    assert logits(small, batch_of(small)).isfinite().all()
    with pytest.raises(ConfigError, match="leaves no token"):
        adapt_model(model, pruning(min_token_count=5), data=data)


def test_factors_are_the_best_of_their_rank() -> None:
    torch.manual_seed(0)
    plain = nn.Embedding(60, 16)
    counts = torch.ones(60)
    made = compact(plain, counts, min_count=0, rank=4)
    error = (made.weight - plain.weight).detach().square().sum()
    singular = torch.linalg.svdvals(plain.weight.detach())
    assert float(error) == pytest.approx(float(singular[4:].square().sum()), rel=1e-3)
    # Frequent tokens keep more of themselves than they would unweighed.
    counts[:6] = 1000.0
    weighed = compact(plain, counts, min_count=0, rank=4)
    errors = [(one.weight - plain.weight).detach()[:6].square().sum() for one in (made, weighed)]
    assert errors[1] < errors[0] / 2
    assert count_parameters(weighed) == 60 * 4 + 4 * 16


def test_an_embedding_of_full_rank_loses_nothing() -> None:
    plain = nn.Embedding(40, 8)
    with torch.no_grad():
        plain.weight[:, 4:] = plain.weight[:, :4]
    made = compact(plain, torch.ones(40), min_count=0, rank=4)
    assert torch.allclose(made.weight, plain.weight, atol=1e-5)


def test_rank_and_rows_together() -> None:
    model = tiny_model("bert")
    data = examples(64)
    small = ModelAdapter(model, pruning(min_token_count=8, embedding_rank=6), data=data).prune()
    details = small.report.steps[0].details
    assert details["embedding_rank"] == 6 and details["embedding_rows"] < VOCABULARY
    assert logits(small.model, batch_of(model)).isfinite().all()
    with pytest.raises(ConfigError, match="saves nothing"):
        adapt_model(model, pruning(embedding_rank=32))


def test_tied_embeddings_are_left_alone() -> None:
    model = tiny_model("llama-lm", tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with pytest.raises(UnsupportedModelError, match="tied"):
        adapt_model(model, pruning(embedding_rank=8))


# --- zeros ------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_zeros_save_nothing(pattern: str) -> None:
    model = tiny_model("bert")
    adapter = ModelAdapter(model, pruning(sparsity=0.5, pattern=pattern)).prune()
    step = adapter.report.steps[0]
    assert step.parameters[0] == step.parameters[1] and step.nbytes[0] == step.nbytes[1]
    assert adapter.report.parameters_removed == adapter.report.bytes_saved == 0
    weight = find_widths(adapter.model, "channels")[0].out_of.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.5)
    if pattern == "2:4":
        assert bool(((weight.reshape(-1, 4) != 0).sum(1) == 2).all())
    assert 0.3 < step.zeros < 0.5  # embeddings and the head have none


# --- what cannot be pruned --------------------------------------------------------------


def test_unknown_shapes_are_refused() -> None:
    model = tiny_model("gpt2-lm")
    small = adapt_model(model, pruning(layers=(1,)))  # layers can be told
    assert len(small.transformer.h) == 2
    for kind in ("heads", "channels"):
        with pytest.raises(UnsupportedModelError, match=f"Write {kind}: 0"):
            adapt_model(model, pruning(**{kind: 0.5}))


def test_models_without_one_stack_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    with pytest.raises(UnsupportedModelError, match="no single stack"):
        adapt_model(T5ForConditionalGeneration(config), pruning(layers=0.5))
    with pytest.raises(UnsupportedModelError, match="no single stack"):
        prune_model(nn.Linear(2, 2), PruneOptions(), [])
