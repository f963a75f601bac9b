"""Layers go: the order is by real KL, and what is left is really smaller and says the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_decoders import (
    SHAPES,
    fingerprint,
    kl_in_llama_cpp,
    logits_of,
    mean_kl,
    parameters_of,
    tiny_decoder,
    token_batches,
)
from tiny_models import Shape, write_tiny_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from tierwise.compression.export import export_gguf
from tierwise.compression.pruning.decoder import decoder_of, skipped
from tierwise.compression.pruning.depth import (
    block_influence,
    prune_layers,
    removal_order,
    skipping_divergence,
)
from tierwise.compression.pruning.order import Removal
from tierwise.runtime.errors import ConfigError, UnsupportedModelError
from tierwise.runtime.llama import Model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_skipped_is_a_layer_gone(shape: str) -> None:
    model = tiny_decoder(shape)
    before = fingerprint(model)
    batches = token_batches()
    for gone in ({1}, {1, 3}, {2, 3, 4}):
        pruned = prune_layers(model, gone)
        with skipped(decoder_of(model), gone):
            bypassed = logits_of(model, batches[0])
        torch.testing.assert_close(logits_of(pruned, batches[0]), bypassed)
        wanted = mean_kl(model, pruned, batches)
        assert skipping_divergence(model, batches, gone) == pytest.approx(wanted, rel=0.01)
    assert fingerprint(model) == before


@pytest.mark.parametrize("shape", SHAPES)
def test_each_removal_costs_what_it_says(shape: str) -> None:
    model = tiny_decoder(shape)
    batches = token_batches()
    before = fingerprint(model)
    order = removal_order(model, batches, 3)
    assert fingerprint(model) == before
    for count in range(1, 4):
        gone = [removal.layer for removal in order[:count]]
        real = mean_kl(model, prune_layers(model, gone), batches)
        assert order[count - 1].kl == pytest.approx(real, rel=0.01)
    assert {removal.layer for removal in order} == {1, 2, 3}


def test_every_choice_is_the_best_of_all_that_are_left() -> None:
    model = tiny_decoder("llama", layers=6, seed=3)
    batches = token_batches()
    gone: list[int] = []
    for removal in removal_order(model, batches, 3, shortlist=99):
        costs = {
            layer: mean_kl(model, prune_layers(model, [*gone, layer]), batches)
            for layer in range(1, 5)
            if layer not in gone
        }
        assert removal.layer == min(costs, key=costs.__getitem__)
        left = prune_layers(model, gone)
        place = [layer for layer in range(6) if layer not in gone].index(removal.layer)
        assert removal.influence == pytest.approx(block_influence(left, batches)[place], rel=1e-3)
        gone.append(removal.layer)


def test_a_search_that_was_cut_short_goes_on() -> None:
    model = tiny_decoder("qwen3", layers=7)
    batches = token_batches()
    noted: list[Removal] = []
    whole = removal_order(model, batches, 4, shortlist=3)

    def cut(text: str, share: float) -> None:
        if share > 0.6:
            raise KeyboardInterrupt(text)

    before = fingerprint(model)
    with pytest.raises(KeyboardInterrupt):
        removal_order(model, batches, 4, shortlist=3, found=noted.append, progress=cut)
    assert fingerprint(model) == before
    assert torch.is_grad_enabled()
    assert tuple(noted) == whole[:2]
    assert removal_order(model, batches, 4, shortlist=3, known=noted) == whole


@pytest.mark.parametrize("shape", SHAPES)
def test_block_influence_is_that_of_the_hidden_states(shape: str) -> None:
    model = tiny_decoder(shape)
    batches = token_batches()
    found = block_influence(model, batches)
    states: list[list[torch.Tensor]] = []
    for ids in batches:
        states.append([*model(input_ids=ids, output_hidden_states=True).hidden_states])
    for layer in range(4):  # transformers has the last layer's output behind the norm
        cosines = [torch.cosine_similarity(s[layer], s[layer + 1], dim=-1) for s in states]
        wanted = 1 - float(torch.stack(cosines).detach().mean())
        assert found[layer] == pytest.approx(wanted, abs=1e-5)
    assert 0 < found[4] < 2


def test_padding_does_not_count() -> None:
    model = tiny_decoder("qwen3", bos_token_id=1, pad_token_id=0)
    ids = token_batches(count=1, rows=2)[0]
    padded = torch.cat([ids, torch.full((2, 9), 7)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 9, dtype=torch.long)], dim=1)
    batch = {"input_ids": padded, "attention_mask": mask, "labels": padded}
    assert block_influence(model, [batch]) == pytest.approx(block_influence(model, [ids]), rel=1e-4)
    plain = skipping_divergence(model, [ids], [2])
    assert skipping_divergence(model, [batch], [2]) == pytest.approx(plain, rel=1e-3)


def test_a_classifier_on_a_decoder_can_be_searched() -> None:
    config = tiny_decoder("llama").config
    config.num_labels = 5
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(config).eval()
    order = removal_order(model, token_batches(), 2)
    assert len(order) == 2
    pruned = prune_layers(model, [removal.layer for removal in order])
    assert pruned(input_ids=token_batches()[0]).logits.shape == (2, 5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shorter_model_is_saved_and_loaded(shape: str, tmp_path: Path) -> None:
    model = tiny_decoder(shape)
    pruned = prune_layers(model, {1, 4})
    assert parameters_of(pruned) < parameters_of(model)
    pruned.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.config.num_hidden_layers == 3
    assert parameters_of(loaded) == parameters_of(pruned)
    ids = token_batches()[0]
    torch.testing.assert_close(logits_of(loaded, ids), logits_of(pruned, ids))


@pytest.mark.parametrize("family", ["llama", "smollm", "qwen2", "qwen3", "mistral"])
def test_llama_cpp_says_the_same_of_a_shorter_model(family: Shape, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "base", family=family, layers=5)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    pruned = prune_layers(model, [1, 3])
    save(pruned, checkpoint, tmp_path / "pruned")
    path = export_gguf(tmp_path / "pruned", tmp_path / "pruned.gguf")
    with Model(path, no_alloc=True) as loaded:
        assert loaded.layers == 3
    ids = [int(i) for i in torch.randint(3, 300, (60,), generator=torch.manual_seed(0))]
    assert kl_in_llama_cpp(pruned, path, ids) < 1e-3


def save(model: Any, checkpoint: Path, folder: Path) -> None:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)


@pytest.mark.parametrize("layers", [[5], [-1], range(5), [1, 99]])
def test_layers_that_cannot_go_are_named(layers: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"out of 5.*from 0 to 4"):
        prune_layers(tiny_decoder("llama"), layers)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "none were given"),
        ([torch.zeros(3, dtype=torch.long)], r"int64 of shape \(3,\)"),
        ([torch.zeros(2, 3)], "float32"),
        ([{"attention_mask": torch.ones(1, 2)}], "has None"),
        ([{"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.zeros(1, 2)}], "padding"),
    ],
)
def test_senseless_batches_are_refused(batches: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        removal_order(tiny_decoder("llama"), batches, 1)


def test_a_model_without_head_has_nothing_to_compare() -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaModel gives no logits"):
        removal_order(tiny_decoder("llama").model, token_batches(), 1)
