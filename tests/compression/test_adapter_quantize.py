"""Quantization of whole models: fewer bytes, close answers, bits where they matter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapter_models import batch_of, examples, logits, tiny_model
from torch import nn

from tierwise.compression.adapter.adapter import ModelAdapter, adapt_model
from tierwise.compression.adapter.batches import made_up
from tierwise.compression.adapter.config import AdapterConfig, QuantizeOptions
from tierwise.compression.adapter.importance import Reference
from tierwise.compression.adapter.quantize import (
    choose_bits,
    freeze,
    quantize_model,
    stored_bytes,
    thaw,
)
from tierwise.compression.adapter.quantized import QuantizedEmbedding, QuantizedLinear
from tierwise.compression.adapter.size import count_bytes, count_parameters
from tierwise.runtime.errors import ConfigError, UnsupportedModelError

MODELS = ("bert", "roberta", "distilbert", "llama", "qwen3-lm", "gemma-lm", "gpt2-lm")


def quantizing(**options: Any) -> AdapterConfig:
    return AdapterConfig.make(quantize=options, steps=("quantize",))


@pytest.mark.parametrize("kind", MODELS)
def test_bytes_really_shrink_and_answers_stay_close(kind: str) -> None:
    model = tiny_model(kind)
    batch = batch_of(model)
    wanted = logits(model, batch)
    errors = []
    for bits, share in ((8, 0.36), (4, 0.26), (2, 0.21)):
        adapter = ModelAdapter(model, quantizing(bits=bits, group=16)).quantize()
        small = adapter.model
        assert count_parameters(small) == count_parameters(model)
        assert adapter.report.parameters_removed == 0
        assert 1 - adapter.report.bytes_saved < share
        errors.append(float((logits(small, batch) - wanted).norm() / wanted.norm()))
    assert errors[0] < 0.05 and errors[0] < errors[1] < errors[2]
    assert torch.equal(logits(model, batch), wanted)


def test_the_answer_is_that_of_the_rounded_matrices() -> None:
    model = tiny_model("bert")
    small = adapt_model(model, quantizing(bits=4, group=16))
    for name, module in small.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            with torch.no_grad():
                model.get_submodule(name).weight.copy_(module.weight)
    batch = batch_of(model)
    assert torch.allclose(logits(small, batch), logits(model, batch), atol=1e-5)


def test_tied_embeddings_are_stored_once() -> None:
    model = tiny_model("llama-lm", tie_word_embeddings=True)
    small = adapt_model(model, quantizing(bits=8))
    assert small.lm_head.codes.data_ptr() == small.get_input_embeddings().codes.data_ptr()
    untied = tiny_model("llama-lm", tie_word_embeddings=False)
    more = count_bytes(adapt_model(untied, quantizing(bits=8))) - count_bytes(small)
    assert more == stored_bytes((48, 32), 8, 32)
    assert count_parameters(small) == count_parameters(model)


def test_some_modules_are_kept() -> None:
    small = adapt_model(tiny_model("bert"), quantizing(keep=("classifier", "bert.embeddings.*")))
    assert type(small.classifier) is nn.Linear
    assert type(small.bert.embeddings.word_embeddings) is nn.Embedding
    assert isinstance(small.bert.pooler.dense, QuantizedLinear)
    with pytest.raises(UnsupportedModelError, match="no linear layer"):
        adapt_model(tiny_model("bert"), quantizing(keep=("*",)))


def test_quantizing_twice_is_refused() -> None:
    adapter = ModelAdapter(tiny_model("bert"), quantizing()).quantize()
    with pytest.raises(UnsupportedModelError, match="no linear layer"):
        adapter.quantize()
    with pytest.raises(ConfigError, match="before quantize"):
        adapter.prune()


# --- adaptive bits ----------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.24, 0.3])
def test_the_budget_is_kept(share: float) -> None:
    model = tiny_model("bert")
    config = quantizing(bits="adaptive", group=16, choices=(2, 4, 8), budget_share=share)
    adapter = ModelAdapter(model, config, data=examples(32)).quantize()
    assert count_bytes(adapter.model) <= share * count_bytes(model)
    bits = adapter.report.steps[0].details["bits"]
    assert set(bits.values()) <= {2, 4, 8}
    if share == 0.24:
        assert len(set(bits.values())) > 1


@pytest.mark.parametrize("kept", ["lm_head", "model.embed_tokens"])
def test_the_budget_is_kept_where_half_of_a_tied_pair_stays(kept: str) -> None:
    model = tiny_model("llama-lm", tie_word_embeddings=True)
    options: dict[str, Any] = {"bits": "adaptive", "group": 16, "keep": (kept,)}
    for share in (0.28, 0.32, 0.36):
        adapter = ModelAdapter(model, quantizing(**options, budget_share=share)).quantize()
        assert count_bytes(adapter.model) <= share * count_bytes(model)
    with pytest.raises(ConfigError, match="is too small"):
        ModelAdapter(model, quantizing(**options, budget_share=0.2)).quantize()


def test_bits_go_where_they_are_missed() -> None:
    """Matrices whose answer nobody reads get the fewest."""
    model = tiny_model("bert", layers=2)
    idle = model.bert.encoder.layer[1].intermediate.dense
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.zero_()
    batches = made_up(model, rows=8, length=16, count=2, seed=0)
    reference = Reference(model, batches)
    plain, adaptive = copy.deepcopy(model), copy.deepcopy(model)
    quantize_model(plain, QuantizeOptions(bits=4, group=16), batches)
    options = QuantizeOptions(
        bits="adaptive", group=16, choices=(2, 4, 8), budget=count_bytes(plain)
    )
    bits = choose_bits(model, options, batches)
    names = {module: name for name, module in model.named_modules()}
    assert bits[names[idle]] == 2
    assert max(bits.values()) == 8
    assert quantize_model(adaptive, options, batches) == bits
    assert count_bytes(adaptive) <= count_bytes(plain)
    assert reference.divergence(adaptive) < reference.divergence(plain)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt2-lm")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = QuantizeOptions(bits="adaptive", group=16)
    choose_bits(model, options, made_up(model, rows=2, length=8, count=1, seed=0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(ConfigError, match="budget of 1000 bytes is too small"):
        adapt_model(tiny_model("bert"), quantizing(bits="adaptive", budget=1000))


def test_a_budget_in_bytes() -> None:
    model = adapt_model(tiny_model("bert"), quantizing(bits="adaptive", group=16, budget="30 KB"))
    assert count_bytes(model) <= 30_000


# --- training what is quantized ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "llama-lm"])
def test_thawed_and_frozen_again_nothing_changed(kind: str) -> None:
    model = adapt_model(tiny_model(kind), quantizing(bits=4, group=16))
    batch = batch_of(model)
    wanted = logits(model, batch)
    frozen = thaw(model)
    assert not any(isinstance(m, QuantizedLinear) for m in model.modules())
    assert torch.allclose(logits(model, batch), wanted, atol=1e-3)
    assert any(p.requires_grad and p.ndim == 2 for p in model.parameters())
    freeze(model, frozen)
    assert torch.allclose(logits(model, batch), wanted, atol=1e-3)


def test_gradients_pass_the_rounding() -> None:
    model = adapt_model(tiny_model("bert"), quantizing(bits=4, group=16))
    thaw(model)
    model(**batch_of(model)).logits.sum().backward()
    weight = model.bert.pooler.dense.parametrizations.weight.original
    assert weight.grad is not None and float(weight.grad.abs().sum()) > 0


def test_embeddings_that_multiply_cannot_be_thawed() -> None:
    model = adapt_model(tiny_model("gemma-lm"), quantizing())
    before = dict(model.named_modules())
    with pytest.raises(UnsupportedModelError, match="Distil first"):
        thaw(model)
    assert dict(model.named_modules()) == before
