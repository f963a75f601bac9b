"""The view on a decoder: every shape is read rightly, others are refused, copies stand alone."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_decoders import (
    SHAPES,
    fingerprint,
    logits_of,
    parameters_of,
    tiny_decoder,
    token_batches,
)
from torch import nn

from tierwise.compression.pruning.decoder import (
    SUPPORTED,
    Bypass,
    copy_without,
    decoder_of,
    evaluating,
    replaced,
    skipped,
)
from tierwise.runtime.errors import UnsupportedModelError


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_a_view(shape: str) -> None:
    model = tiny_decoder(shape)
    decoder = decoder_of(model)
    head_dim = 24 if shape == "qwen3" else 8
    assert (decoder.width, decoder.ffn) == (64, 128)
    assert (decoder.heads, decoder.kv_heads, decoder.group_size) == (8, 4, 2)
    assert decoder.head_dim == head_dim
    assert [layer.index for layer in decoder.layers] == [0, 1, 2, 3, 4]
    assert decoder.config is model.config
    for layer, module in zip(decoder.layers, model.model.layers, strict=True):
        assert layer.module is module
        assert layer.q is module.self_attn.q_proj
        assert layer.down is module.mlp.down_proj
        assert len(layer.norms) == (4 if shape in ("gemma2", "gemma3") else 2)
        shapes = {name: tuple(part.weight.shape) for name, part in layer.projections.items()}
        assert shapes == {
            "attn_q": (8 * head_dim, 64),
            "attn_k": (4 * head_dim, 64),
            "attn_v": (4 * head_dim, 64),
            "attn_output": (64, 8 * head_dim),
            "ffn_gate": (128, 64),
            "ffn_up": (128, 64),
            "ffn_down": (64, 128),
        }


def test_all_that_is_supported_is_tested() -> None:
    assert {type(tiny_decoder(s, layers=1).base_model).__name__ for s in SHAPES} == set(SUPPORTED)


def test_layers_are_told_apart_where_the_architecture_does() -> None:
    full, sliding = "full_attention", "sliding_attention"
    assert decoder_of(tiny_decoder("llama")).layer_types is None
    assert decoder_of(tiny_decoder("qwen2")).layer_types == (full, full, full, sliding, sliding)
    assert decoder_of(tiny_decoder("gemma2", layers=3)).layer_types == (sliding, full, sliding)


def test_any_head_may_stand_on_the_body() -> None:
    model = tiny_decoder("llama")
    assert decoder_of(model.model).layers[1].module is model.model.layers[1]
    classifier = transformers.LlamaForSequenceClassification(model.config)
    assert decoder_of(classifier).model is classifier


def small(name: str, **options: object) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}Model")(config)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Bert", {"num_hidden_layers": 1, "hidden_size": 24, "vocab_size": 30}),
        ("GPT2", {"n_layer": 1, "n_embd": 24, "vocab_size": 30}),
        (
            "Mixtral",
            {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
            | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 30},
        ),
    ],
)
def test_other_models_are_refused_by_name(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"a {name}Model: .*LlamaModel.*Gemma3Text"):
        decoder_of(small(name, **options))
    with pytest.raises(UnsupportedModelError, match="a Linear"):
        decoder_of(nn.Linear(2, 2))


def test_layers_that_are_not_plain_are_refused() -> None:
    model = tiny_decoder("llama")
    model.model.layers[2].mlp.up_proj = nn.Sequential(nn.Linear(64, 128))
    with pytest.raises(UnsupportedModelError, match="up projection of layer 2 is a Sequential"):
        decoder_of(model)
    model.model.layers[2].mlp.up_proj = nn.Linear(64, 96)
    with pytest.raises(UnsupportedModelError, match=r"layer 2 .*\(64, 32, 96\)"):
        decoder_of(model)
    model = tiny_decoder("llama")
    weight = model.model.layers[1].self_attn.k_proj.weight
    weight.requires_grad_(False)
    weight.data = weight.data.to(torch.int8)
    with pytest.raises(UnsupportedModelError, match="k projection of layer 1"):
        decoder_of(model)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_copy_stands_alone(shape: str) -> None:
    model = tiny_decoder(shape)
    before = fingerprint(model)
    copied = copy_without(model, {1, 3})
    assert fingerprint(model) == before
    kept = [model.model.layers[i] for i in (0, 2, 4)]
    for ours, theirs in zip(copied.model.layers, kept, strict=True):
        assert torch.equal(ours.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
    assert [layer.self_attn.layer_idx for layer in copied.model.layers] == [0, 1, 2]
    assert copied.config.num_hidden_layers == 3
    assert all(layer.self_attn.config is copied.config for layer in copied.model.layers)
    if (types := decoder_of(model).layer_types) is not None:
        assert copied.config.layer_types == [types[i] for i in (0, 2, 4)]
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert fingerprint(model) == before


def test_tied_weights_stay_tied_and_gradients_stay_behind() -> None:
    model = tiny_decoder("llama")
    model(input_ids=token_batches()[0]).logits.sum().backward()
    copied = copy_without(model, {1})
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    assert parameters_of(model) - parameters_of(copied) == sum(
        p.numel() for p in model.model.layers[1].parameters()
    )
    assert all(parameter.grad is None for parameter in copied.parameters())
    assert all(parameter.requires_grad for parameter in copied.parameters())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_copy_speaks_with_a_cache_as_without(shape: str) -> None:
    copied = copy_without(tiny_decoder(shape), {1, 2})
    ids = token_batches()[0]
    whole = logits_of(copied, ids)
    with torch.no_grad():
        first = copied(input_ids=ids[:, :15], use_cache=True)
        rest = copied(input_ids=ids[:, 15:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, whole[:, 15:], atol=1e-4, rtol=1e-4)


def test_hidden_states_can_be_had_from_a_copy() -> None:
    """transformers leaves hooks on the layers it was once asked about."""
    model = tiny_decoder("qwen3")
    ids = token_batches()[0]
    assert len(model(input_ids=ids, output_hidden_states=True).hidden_states) == 6
    copied = copy_without(model, {0, 2})
    assert len(copied(input_ids=ids, output_hidden_states=True).hidden_states) == 4
    assert len(model(input_ids=ids, output_hidden_states=True).hidden_states) == 6


def test_layers_are_back_whatever_happens() -> None:
    model = tiny_decoder("llama")
    before = fingerprint(model)
    decoder = decoder_of(model)
    with pytest.raises(KeyError), skipped(decoder, {1, 2}):
        assert isinstance(model.model.layers[2], Bypass)
        raise KeyError
    with pytest.raises(KeyError), replaced(decoder, {0: Bypass()}):
        raise KeyError
    assert fingerprint(model) == before


def test_modes_are_back_after_evaluation() -> None:
    model = tiny_decoder("llama").train()
    model.model.layers[1].eval()
    before = fingerprint(model)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert fingerprint(model) == before
    assert torch.is_grad_enabled()
