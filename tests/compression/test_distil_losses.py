"""Distillation losses are the formulas they say, and sampled targets are unbiased."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

from tierwise.compression.distillation.anchor import Anchor
from tierwise.compression.distillation.losses import (
    LOSSES,
    forward_kl,
    hidden_loss,
    jsd,
    reverse_kl,
    skew_kl,
)
from tierwise.compression.distillation.signal import (
    DenseLogits,
    SampledLogits,
    check_loss,
    distance,
    sample_logits,
)
from tierwise.runtime.errors import ConfigError


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Logits of a student and a teacher, shape (6, 50); far from being probabilities."""
    noise = torch.Generator().manual_seed(1)
    return (torch.randn(6, 50, generator=noise) * 4 + 7, torch.randn(6, 50, generator=noise) * 3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_losses_are_their_formulas(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    student, teacher = pair
    p = (teacher.double() / temperature).softmax(-1)
    q = (student.double() / temperature).softmax(-1)
    kl: Callable[[Tensor, Tensor], Tensor] = lambda a, b: (a * (a / b).log()).sum(-1).mean()  # noqa: E731
    square = temperature**2
    half = (p + q) / 2
    wanted = {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jsd": (kl(p, half) + kl(q, half)) / 2,
        "skew_kl": kl(p, 0.1 * p + 0.9 * q),
    }
    assert wanted.keys() == LOSSES.keys()
    for name, value in wanted.items():
        found = LOSSES[name](student, teacher, temperature=temperature)
        assert float(found) == pytest.approx(float(value * square), rel=1e-4), name


def test_forward_kl_is_the_one_of_torch(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    wanted = F.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert float(forward_kl(student, teacher)) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, jsd, skew_kl])
def test_a_loss_is_zero_for_the_teacher_itself_and_falls_towards_it(
    pair: tuple[Tensor, Tensor], loss: Callable[..., Tensor]
) -> None:
    student, teacher = pair
    # Logits that differ by a constant are the same probabilities.
    assert float(loss(teacher + 100, teacher)) == pytest.approx(0, abs=1e-5)
    logits = student.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        loss(logits, teacher).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss(logits.detach(), teacher)) < 0.5 * float(loss(student, teacher))


def test_masked_tokens_do_not_count(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    mask = torch.tensor([1.0, 0, 1, 0, 0, 0])
    rows = torch.tensor([0, 2])
    assert float(forward_kl(student, teacher, mask=mask)) == pytest.approx(
        float(forward_kl(student[rows], teacher[rows])), rel=1e-5
    )


def test_hidden_states() -> None:
    noise = torch.Generator().manual_seed(0)
    states = [torch.randn(5, 8, generator=noise) for _ in range(2)]
    assert float(hidden_loss([2 * one for one in states], states)) == pytest.approx(0, abs=1e-6)
    assert float(hidden_loss([-one for one in states], states)) == pytest.approx(2, abs=1e-6)
    assert float(hidden_loss([2 * one for one in states], states, "mse")) == pytest.approx(1)
    with pytest.raises(ConfigError, match="2 student layers"):
        hidden_loss(states, states[:1])
    with pytest.raises(ConfigError, match="'l1'; known: cosine, mse"):
        hidden_loss(states, states, "l1")


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperatures_that_make_no_sense(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        forward_kl(*pair, temperature=temperature)


# --- sampled targets ------------------------------------------------------------------------------


def spread_out(sketch: SampledLogits, vocabulary: int) -> Tensor:
    """The distribution that a sketch stands for, shape (n, vocabulary)."""
    out = torch.zeros(len(sketch), vocabulary)
    return out.scatter_add_(-1, sketch.ids.long(), sketch.weights.float())


def test_a_sketch_is_right_on_average() -> None:
    noise = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 300, generator=noise).expand(4000, -1)
    sketch = sample_logits(logits, top=4, draws=4, generator=noise)
    found = spread_out(sketch, 300)
    assert torch.allclose(found.sum(-1), torch.ones(4000), atol=2e-3)
    # Four draws of a tail of nearly 1, 4,000 times: a standard error of 0.0004 at p = 0.01.
    assert torch.allclose(found.mean(0), logits[0].softmax(-1), atol=3e-3)
    best = logits[0].softmax(-1).topk(4).values
    assert torch.allclose(sketch.weights[0, :4].float(), best, atol=1e-3)  # these are exact


def test_the_gradient_of_a_sketch_is_right_on_average_and_that_of_the_best_few_is_not() -> None:
    noise = torch.Generator().manual_seed(4)
    teacher = torch.randn(1, 200, generator=noise)
    student = torch.randn(1, 200, generator=noise).requires_grad_()
    (wanted,) = torch.autograd.grad(forward_kl(student, teacher), student)
    many = 6000
    sketch = sample_logits(teacher.expand(many, -1), top=4, draws=8, generator=noise)
    loss = distance("forward_kl", student.expand(many, -1), sketch, torch.ones(many), temperature=1)
    (found,) = torch.autograd.grad(loss / many, student)
    assert torch.allclose(found, wanted, atol=1.5e-3)
    cut = sample_logits(teacher, top=12, draws=0)
    cut = SampledLogits(cut.ids, cut.weights / cut.weights.sum(), cut.entropy)
    loss = distance("forward_kl", student, cut, torch.ones(1), temperature=1)
    (biased,) = torch.autograd.grad(loss, student)
    assert (biased - wanted).abs().max() > 10 * (found - wanted).abs().max()


def test_a_whole_vocabulary_of_exact_entries_is_the_dense_loss(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    weights = torch.arange(6.0)
    for temperature in (1.0, 2.0):
        sketch = sample_logits(teacher, temperature=temperature, top=50)
        sampled = distance("forward_kl", student, sketch, weights, temperature=temperature)
        dense = distance(
            "forward_kl", student, DenseLogits(teacher), weights, temperature=temperature
        )
        assert float(sampled) == pytest.approx(float(dense), rel=2e-3)


def test_a_position_takes_less_than_400_bytes() -> None:
    sketch = sample_logits(torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)))
    size = sum(
        tensor.element_size() * tensor[0].numel()
        for tensor in (sketch.ids, sketch.weights, sketch.entropy)
    )
    assert size < 400


def test_what_a_sketch_cannot_give(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    sketch = sample_logits(teacher, temperature=2.0)
    with pytest.raises(ConfigError, match="whole distribution"):
        distance("reverse_kl", student, sketch, torch.ones(6), temperature=2.0)
    with pytest.raises(ConfigError, match=r"temperature 2\.0, the loss is at 1\.0"):
        distance("forward_kl", student, sketch, torch.ones(6), temperature=1.0)
    with pytest.raises(ConfigError, match="unknown distillation loss 'l2'"):
        check_loss("l2", sampled=False)


# --- the regularised objective --------------------------------------------------------------------


def test_the_anchor_is_lambda_times_the_squared_distance() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    anchor = Anchor(model, 0.25)
    assert float(anchor.penalty().detach()) == 0
    with torch.no_grad():
        model.weight += 2
        model.bias += 100  # not trained, so it does not count
    assert float(anchor.penalty().detach()) == pytest.approx(0.25 * 6 * 4)
    anchor.penalty().backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.grad, torch.full((2, 3), 2 * 0.25 * 2.0))
    with pytest.raises(ConfigError, match="-1"):
        Anchor(model, -1)


def test_the_anchor_holds_weights_near_their_start() -> None:
    def trained(strength: float) -> float:
        torch.manual_seed(0)
        model = nn.Linear(4, 4, bias=False)
        start = model.weight.detach().clone()
        anchor = Anchor(model, strength)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        inputs = torch.randn(16, 4)
        for _ in range(50):
            optimizer.zero_grad()
            loss = (model(inputs) - 3).square().mean() + anchor.penalty()
            loss.backward()
            optimizer.step()
        return float((model.weight.detach() - start).norm())

    assert trained(1.0) < 0.5 * trained(0.0)
