"""Wanda's scores, the masks, and what sparsity does and does not save."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_decoders import (
    SHAPES,
    fingerprint,
    mean_kl,
    parameters_of,
    tiny_decoder,
    token_batches,
)
from tiny_models import write_tiny_checkpoint
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tierwise.compression.export import export_gguf
from tierwise.compression.pruning.decoder import decoder_of
from tierwise.compression.pruning.sparsity import (
    follows_nm,
    layer_mask,
    nm_mask,
    prune_nm,
    prune_wanda,
    sparsity_of,
    unstructured_mask,
    wanda_scores,
)
from tierwise.compression.quantize import quantize
from tierwise.runtime.errors import ConfigError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_scores_are_weight_times_input_norm() -> None:
    """The example of the paper's figure 1: magnitude alone would choose otherwise."""
    weight = torch.tensor([[4.0, 0.0, 1.0, -1.0], [3.0, -2.0, -1.0, -3.0], [-3.0, 1.0, 0.0, 2.0]])
    norms = torch.tensor([1.0, 2.0, 8.0, 3.0])
    scores = wanda_scores(weight, norms)
    assert scores.tolist() == [[4, 0, 8, 3], [3, 4, 8, 9], [3, 2, 0, 6]]
    kept = weight * unstructured_mask(scores, 0.5)
    assert kept.tolist() == [[4, 0, 1, 0], [0, 0, -1, -3], [-3, 0, 0, 2]]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_every_row_loses_as_many(share: float) -> None:
    scores = torch.rand(7, 50, generator=torch.manual_seed(0))
    mask = unstructured_mask(scores, share)
    assert mask.sum(1).tolist() == [50 - round(50 * share)] * 7
    if 0 < share < 1:
        for row, kept in zip(scores, mask, strict=True):
            assert row[kept].min() >= row[~kept].max()
    assert unstructured_mask(torch.zeros(3, 8), 0.5).sum(1).tolist() == [4, 4, 4]  # all the same


def test_a_whole_matrix_can_be_compared() -> None:
    scores = torch.arange(12.0).reshape(3, 4)
    assert layer_mask(scores, 0.5).tolist() == [[False] * 4, [False] * 2 + [True] * 2, [True] * 4]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_the_pattern_holds_in_every_row(n: int, m: int) -> None:
    scores = torch.rand(5, 24, generator=torch.manual_seed(0))
    mask = nm_mask(scores, n, m)
    assert (mask.reshape(5, -1, m).sum(2) == n).all()
    best = (scores * mask).reshape(5, -1, m).max(2).values
    assert torch.equal(best, scores.reshape(5, -1, m).max(2).values)
    assert follows_nm(scores * mask, n, m)
    assert not follows_nm(scores, n, m)
    assert not follows_nm(torch.zeros(2, m + 1), n, m)


@pytest.mark.parametrize(("n", "m", "width"), [(2, 4, 6), (0, 4, 8), (4, 4, 8)])
def test_patterns_that_do_not_fit_are_refused(n: int, m: int, width: int) -> None:
    with pytest.raises(ConfigError, match=rf"{n}:{m} does not fit rows of {width}"):
        nm_mask(torch.zeros(2, width), n, m)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sparsity_asked_for_is_reached(shape: str) -> None:
    model = tiny_decoder(shape)
    before = fingerprint(model)
    for pruned in (prune_wanda(model, token_batches(), 0.5), prune_nm(model, token_batches())):
        assert fingerprint(model) == before
        report = sparsity_of(pruned)
        layers = {n: s for n, s in report.by_layer.items() if n != "lm_head"}
        assert len(layers) == 35
        assert set(layers.values()) == {0.5}
        assert report.by_layer["lm_head"] == 0.0
        assert 0.4 < report.share < 0.5
        assert parameters_of(pruned) == parameters_of(model)
        pruned(input_ids=token_batches()[0]).logits.sum().backward()  # it can be trained on
    for layer in decoder_of(pruned).layers:
        assert all(follows_nm(linear.weight) for linear in layer.projections.values())
        rows = (layer.down.weight != 0).sum(1)
        assert set(rows.tolist()) == {64}


def test_scores_see_the_inputs_of_each_layer() -> None:
    """Channels that are never active lose their weights, large though these are."""
    model = tiny_decoder("llama")
    with torch.no_grad():
        for layer in decoder_of(model).layers:
            layer.gate.weight[::2] = 0
            layer.down.weight[:, ::2] *= 100
    pruned = prune_wanda(model, token_batches(), 0.5)
    for layer in decoder_of(pruned).layers:
        assert not layer.down.weight[:, ::2].any()
        assert layer.down.weight[:, 1::2].all()


def test_layers_are_scored_on_what_pruned_ones_put_out() -> None:
    model = tiny_decoder("llama", layers=2)
    pruned = prune_wanda(model, token_batches(), 0.6)
    inputs: list[torch.Tensor] = []
    last = decoder_of(pruned).layers[1]
    hook = last.gate.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    for ids in token_batches():
        pruned(input_ids=ids)
    hook.remove()
    # The gate's input depends on the pruned attention of the same layer, so take the query's.
    inputs.clear()
    hook = last.q.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    for ids in token_batches():
        pruned(input_ids=ids)
    hook.remove()
    norms = torch.cat([part.flatten(0, 1) for part in inputs]).norm(dim=0).detach()
    dense = decoder_of(model).layers[1].q.weight
    mask = unstructured_mask(wanda_scores(dense, norms), 0.6)
    assert torch.equal(last.q.weight, dense * mask)


def test_wanda_beats_magnitude_where_inputs_differ_in_size() -> None:
    model = tiny_decoder("llama", layers=3)
    with torch.no_grad():
        for layer in decoder_of(model).layers:
            for norm in layer.norms:
                norm.weight.mul_(torch.logspace(-1, 1, 64))  # type: ignore[operator,union-attr]
    batches = token_batches(count=4)
    magnitude = prune_wanda(model, batches, 0.0)
    with torch.no_grad():
        for layer in decoder_of(magnitude).layers:
            for linear in layer.projections.values():
                linear.weight.mul_(unstructured_mask(linear.weight.abs(), 0.4))
    held_out = token_batches(seed=9)
    ours = mean_kl(model, prune_wanda(model, batches, 0.4), held_out)
    assert ours < mean_kl(model, magnitude, held_out)


def test_llama_cpp_stores_zeros_like_any_other_weight(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "base", family="llama", licence=None)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    prune_nm(model, token_batches()).save_pretrained(tmp_path / "sparse")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "sparse")
    sizes = set()  # of F16 and of Q8_0
    for name in ("base", "sparse"):
        path = export_gguf(tmp_path / name, tmp_path / f"{name}.gguf", name="same")
        quantize(path, tmp_path / f"{name}-q8.gguf", "Q8_0", threads=1)
        sizes.add((path.stat().st_size, (tmp_path / f"{name}-q8.gguf").stat().st_size))
    assert len(sizes) == 1


def test_padding_does_not_count() -> None:
    model = tiny_decoder("qwen3")
    ids = token_batches(count=1)[0]
    padded = torch.cat([ids, torch.full((2, 9), 7)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 9, dtype=torch.long)], dim=1)
    plain = prune_wanda(model, [ids], 0.5).state_dict()
    other = prune_wanda(model, [{"input_ids": padded, "attention_mask": mask}], 0.5).state_dict()
    same = [(plain[name] == other[name]).float().mean() for name in plain]
    assert min(same) > 0.99  # sums in another order may turn a tie


def test_any_model_can_be_counted() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[2].weight.fill_(1)
    report = sparsity_of(model)
    assert (report.zeros, report.weights) == (4, 14)
    assert report.by_layer == {"0": 0.5, "2": 0.0}
    assert sparsity_of(nn.ReLU()).share == 0.0


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_senseless_shares_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=str(share)):
        prune_wanda(tiny_decoder("llama"), token_batches(), share)


def test_a_pattern_is_refused_before_anything_is_copied() -> None:
    with pytest.raises(ConfigError, match="2:7 does not fit rows of 64"):
        prune_nm(tiny_decoder("llama"), [], 2, 7)
