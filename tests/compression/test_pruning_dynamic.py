"""Gradual pruning in a training loop: the schedule is kept, and weights come back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_decoders import tiny_decoder, token_batches
from torch import Tensor, nn

from tierwise.compression.pruning.dynamic import DynamicPruner, cubic_share
from tierwise.compression.pruning.sparsity import (
    follows_nm,
    nm_mask,
    sparsity_of,
    unstructured_mask,
)
from tierwise.runtime.errors import ConfigError


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


def task(seed: int = 0) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, 8, generator=noise)
    return inputs, (inputs[:, :1] * inputs[:, 1:2]).tanh()


def train(model: nn.Module, steps: int, pruner: DynamicPruner | None, optimizer: Any) -> float:
    inputs, wanted = task()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), wanted)
        loss.backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
    return float(nn.functional.mse_loss(model(inputs), wanted).detach())


def test_the_share_rises_on_a_cubic_curve() -> None:
    shares = [cubic_share(step, final=0.8, begin=10, end=50) for step in range(61)]
    assert shares[:11] == [0.0] * 11
    assert shares == sorted(shares)
    assert shares[50:] == [0.8] * 11
    assert shares[30] == pytest.approx(0.8 * (1 - 0.5**3))
    assert cubic_share(20, final=0.5, begin=0, end=40, initial=0.2) == pytest.approx(
        0.5 + (0.2 - 0.5) * 0.5**3
    )


def test_the_schedule_is_kept_and_the_rest_learns() -> None:
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    start = train(model, 0, None, optimizer)
    pruner = DynamicPruner(model, 0.75, end=200, begin=20, every=5)
    inputs, wanted = task()
    for step in range(1, 301):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), wanted).backward()
        optimizer.step()
        share = pruner.step()
        drawn = min(step, 200) if step >= 200 else 20 + (step - 20) // 5 * 5
        wanted_share = cubic_share(drawn, final=0.75, begin=20, end=200)
        assert sparsity_of(model).share == pytest.approx(wanted_share, abs=0.02)
        assert share == cubic_share(step, final=0.75, begin=20, end=200)
    report = pruner.finish()
    assert report.by_layer == {"0": 0.75, "2": 0.75, "4": 0.75}
    assert float(nn.functional.mse_loss(model(inputs), wanted).detach()) < 0.3 * start


def test_weights_come_back() -> None:
    """One that is small at first and needed: it is masked, grows unseen, and returns."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.01, 0.5, 0.6, 0.7]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = DynamicPruner(model, 0.5, end=100, every=1, initial=0.5)
    assert (model[0].weight == 0).tolist() == [[True, True, False, False]]
    inputs = torch.eye(4)
    wanted = torch.tensor([[2.0], [0.1], [0.6], [0.2]])
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), wanted).backward()
        optimizer.step()
        pruner.step()
    assert pruner.finish().share == 0.5
    assert (model[0].weight != 0).tolist() == [[True, False, True, False]]


def test_masked_weights_are_kept_between_masks() -> None:
    model = small_net()
    dense = [p.detach().clone() for p in model.parameters()]
    pruner = DynamicPruner(model, 0.5, end=10, every=1)
    for _ in range(5):
        pruner.step()  # no update between
    assert sparsity_of(model).share > 0.3
    state = pruner.state_dict()
    for before, name in zip((dense[0], dense[2], dense[4]), ("0", "2", "4"), strict=True):
        assert torch.equal(state["dense"][name], before)


def test_masks_stay_once_the_end_is_reached() -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = DynamicPruner(model, 0.5, end=10, every=3)
    train(model, 10, pruner, optimizer)
    zeros = [(p == 0) for p in model.parameters() if p.ndim == 2]
    train(model, 30, pruner, optimizer)
    for before, weight in zip(zeros, (p for p in model.parameters() if p.ndim == 2), strict=True):
        assert torch.equal(weight == 0, before)


@pytest.mark.parametrize("cut", [4, 13, 25])
def test_an_interrupted_run_goes_on_exactly(cut: int) -> None:
    def begin() -> tuple[nn.Module, Any, DynamicPruner]:
        model = small_net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, optimizer, DynamicPruner(model, 0.6, end=20, every=3)

    model, optimizer, pruner = begin()
    train(model, cut, pruner, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    train(model, 30 - cut, pruner, optimizer)

    other, second, again = begin()
    other.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    train(other, 30 - cut, again, second)
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_of_other_layers_is_refused() -> None:
    state = DynamicPruner(small_net(), 0.5, end=10).state_dict()
    other = DynamicPruner(small_net(), 0.5, end=10, only=lambda name: name != "4")
    with pytest.raises(ConfigError, match="3 layers that are not the 2"):
        other.load_state_dict(state)


def test_only_the_layers_chosen_are_pruned() -> None:
    model = small_net()
    pruner = DynamicPruner(model, 0.5, end=1, every=1, only=lambda name: name == "2")
    pruner.step()
    assert pruner.finish().by_layer == {"0": 0.0, "2": 0.5, "4": 0.0}
    with pytest.raises(ConfigError, match="after finish"):
        pruner.step()


def test_patterns_can_be_dynamic_too() -> None:
    model = small_net()
    pruner = DynamicPruner(model, 0.5, end=2, every=1, mask=lambda scores, _share: nm_mask(scores))
    train(model, 5, pruner, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(follows_nm(model[i].weight) for i in (0, 2, 4))
    rows = DynamicPruner(model, 0.5, end=1, mask=unstructured_mask)
    rows.step()
    assert set((model[2].weight != 0).sum(1).tolist()) == {16}


def test_tied_embeddings_stay_dense() -> None:
    model = tiny_decoder("llama", layers=2)  # the head shares the embeddings' weights
    pruner = DynamicPruner(model, 0.5, end=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    ids = token_batches()[0]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    pruner.step()
    report = pruner.finish()
    assert report.by_layer.pop("lm_head") == 0.0
    assert set(report.by_layer.values()) == {0.5}
    assert len(report.by_layer) == 14


def test_weights_that_two_layers_share_are_pruned_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = DynamicPruner(model, 0.5, end=3, every=1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.eye(8)).square().sum().backward()
        optimizer.step()
        pruner.step()
    assert pruner.finish().by_layer == {"0": 0.5, "1": 0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 0}, "end 0"),
        ({"end": 5, "begin": 5}, "begin is 5"),
        ({"end": 5, "begin": -1}, "begin is -1"),
        ({"end": 5, "every": 0}, "every 0"),
        ({"end": 5, "initial": 1.5}, "1.5"),
        ({"end": 5, "only": lambda _name: False}, "no linear layer"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DynamicPruner(small_net(), 0.5, **options)
