"""A training loop for small models: the labels, a teacher's soft targets, or both.

Loss = (1 − soft) · labels + soft · T²·KL(teacher ‖ student) + hidden · hidden states
+ λ‖θ − θ₀‖² (Hinton et al., arXiv 1503.02531; L2-SP, arXiv 1802.01483).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

from tierwise.compression.adapter.anatomy import find_stack
from tierwise.compression.adapter.batches import Batches, Numbered
from tierwise.compression.adapter.config import DistillOptions
from tierwise.compression.adapter.importance import logits_of, token_mask
from tierwise.compression.adapter.teacher import (
    CachedTeacher,
    OnlineTeacher,
    Taught,
    check_teacher,
)
from tierwise.compression.distillation.anchor import Anchor
from tierwise.compression.distillation.losses import LOSSES, hidden_loss
from tierwise.runtime.errors import BuildError, ConfigError

Progress = Callable[[str, float], None]
"""Called with what is done and the share of it, 0..1."""

PATIENCE = 20
"""Steps in a row whose loss or gradient is not finite, after which training ends."""

LAST_RATE = 0.1
"""Of the highest learning rate, at the end of the cosine."""


@dataclass(frozen=True)
class Training:
    """What a training came to.

    Args:
        steps: Taken by the optimizer.
        skipped_steps: Left out, as the loss or the gradient was not finite.
        examples: Rows that were learned from, repetitions counted.
        seconds: Of it all.
        losses: Of every step that was taken.
    """

    steps: int
    skipped_steps: int
    examples: int
    seconds: float
    losses: tuple[float, ...]


def train(
    model: nn.Module,
    batches: Batches,
    options: DistillOptions,
    *,
    teacher: nn.Module | None = None,
    layers: Sequence[int] = (),
    after_step: Callable[[], None] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Training:
    """Trains a model in place.

    Args:
        model: With a head that gives logits.
        batches: Of the data.
        options: How.
        teacher: Whose answers are learned; None for labels only. Is not changed.
        layers: For hidden states: the teacher's layer that each of the model's came from.
        after_step: Called after each optimizer step.
        seed: Of the order of examples and of dropout.
        progress: Called about a hundred times.

    Raises:
        ConfigError: No labels, a stream without ``steps``, or a teacher that does not fit.
        BuildError: The loss was not finite for `PATIENCE` steps in a row. The model's parameters
            are those of the last good step.
    """
    began = time.perf_counter()
    steps = steps_of(batches, options)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device.type
    optimizer = _optimizer(parameters, options)
    anchor = Anchor(model, options.anchor)
    lesson = _Lesson(model, options, teacher, layers)
    losses: list[float] = []
    examples = skipped = in_a_row = 0
    with _training(model, seed):
        for number, numbered in enumerate(_endless(batches, steps, seed)):
            with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
                loss = lesson.loss(numbered)
            loss = loss + anchor.penalty().to(loss.device)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, options.clip)
            if math.isfinite(float(loss.detach())) and bool(torch.isfinite(norm)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(number, steps, options)
                optimizer.step()
                losses.append(float(loss.detach()))
                examples += len(numbered.batch["input_ids"])
                in_a_row = 0
            else:
                skipped, in_a_row = skipped + 1, in_a_row + 1
            optimizer.zero_grad(set_to_none=True)
            if in_a_row >= PATIENCE:
                raise BuildError(
                    f"training diverged: the loss was not finite for {PATIENCE} steps in a row, "
                    f"up to step {number + 1} of {steps}. Choose a smaller learning_rate than "
                    f"{options.learning_rate}."
                )
            if after_step is not None:
                after_step()
            if progress is not None and number % max(1, steps // 100) == 0:
                shown = losses[-1] if losses else math.nan
                progress(f"step {number + 1} of {steps}, loss {shown:.3f}", (number + 1) / steps)
    seconds = time.perf_counter() - began
    return Training(len(losses), skipped, examples, seconds, tuple(losses))


@contextmanager
def _training(model: nn.Module, seed: int) -> Iterator[None]:
    """Dropout by a seed, and nobody else's random numbers are touched."""
    before = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model.train()
            yield
        finally:
            model.train(before)


def learning_rate(step: int, steps: int, options: DistillOptions) -> float:
    """At a step, from 0: up in a line, then along half a cosine to a tenth."""
    rising = max(1, round(steps * options.warmup))
    if step < rising:
        return options.learning_rate * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return options.learning_rate * (LAST_RATE + (1 - LAST_RATE) * cosine)


def steps_of(batches: Batches, options: DistillOptions) -> int:
    """Optimizer steps that the options ask for.

    Raises:
        ConfigError: A stream, and no number of steps.
    """
    if options.steps is not None:
        return options.steps
    if batches.is_stream:
        raise ConfigError(
            "the dataset is a stream of unknown length, so that epochs mean nothing. Set "
            "distill.steps to the optimizer steps wanted."
        )
    return max(1, math.ceil(options.epochs * len(batches)))


def _endless(batches: Batches, steps: int, seed: int) -> Iterator[Numbered]:
    """Epoch after epoch, ``steps`` batches in all; a stream that ends, ends it."""
    taken = epoch = 0
    while taken < steps:
        before = taken
        for numbered in batches.epoch(seed * 1_000_003 + epoch):
            yield numbered
            taken += 1
            if taken == steps:
                return
        if taken == before:
            break
        epoch += 1
    if taken == 0:
        raise ConfigError("the dataset gave no examples; a generator can be read only once")


def _optimizer(parameters: Sequence[nn.Parameter], options: DistillOptions) -> Any:
    groups = [
        {
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": options.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    # One pass over the weights in place of ten: a fifth of a small model's step.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.AdamW(filled, lr=options.learning_rate, fused=fused)


class _Lesson:
    """The loss of a batch, before the anchor."""

    def __init__(
        self,
        model: nn.Module,
        options: DistillOptions,
        teacher: nn.Module | None,
        layers: Sequence[int],
    ) -> None:
        self._model, self._options, self._layers = model, options, layers
        self._teacher: OnlineTeacher | CachedTeacher | None = None
        self._given = teacher if options.soft or options.hidden else None
        self._soft = options.soft if teacher is not None else 0.0
        if self._given is not None:
            bf16 = options.precision == "bf16"
            online = OnlineTeacher(self._given, hidden=bool(options.hidden), bf16=bf16)
            self._teacher = CachedTeacher(online) if options.teacher == "cached" else online
        self._checked = False

    def loss(self, numbered: Numbered) -> Tensor:
        """A scalar."""
        batch, options = numbered.batch, self._options
        taught = None
        if self._teacher is not None:
            if not self._checked:
                check_teacher(self._given, self._model, batch)
                self._checked = True
            taught = self._teacher(numbered)
        wants_hidden = taught is not None and bool(options.hidden)
        with self._last_layer(taught if wants_hidden else None) as last:
            output = logits_of(self._model, batch, output_hidden_states=wants_hidden)
        logits: Tensor = output.logits
        total = torch.zeros((), device=logits.device)
        if self._soft < 1:
            total = total + (1 - self._soft) * label_loss(self._model, logits, batch)
        if taught is None:
            return total
        mask = token_mask(batch, logits)
        if self._soft:
            distance = LOSSES[options.loss]
            theirs = taught.logits.to(logits.device)
            value = distance(logits, theirs, temperature=options.temperature, mask=mask)
            total = total + self._soft * value
        if wants_hidden:
            states = [*output.hidden_states[:-1], *(last or output.hidden_states[-1:])]
            total = total + options.hidden * self._hidden(states, taught, batch)
        return total

    @contextmanager
    def _last_layer(self, taught: Taught | None) -> Iterator[list[Tensor]]:
        """What the last layer gives out, where the teacher has another one after it.

        The last of a decoder's hidden states went through its last norm, and those of the
        teacher's earlier layers did not.
        """
        out: list[Tensor] = []
        if taught is None or not self._layers or self._layers[-1] + 2 == len(taught.hidden):
            yield out
            return

        def see(_module: nn.Module, _inputs: Any, output: Any) -> None:
            out[:] = [output[0] if isinstance(output, tuple) else output]

        handle = find_stack(self._model).layers[-1].register_forward_hook(see)
        try:
            yield out
        finally:
            handle.remove()

    def _hidden(self, states: Sequence[Tensor], taught: Taught, batch: Any) -> Tensor:
        layers = self._layers or range(len(taught.hidden) - 1)
        own = list(states[1:])
        wanted = [taught.hidden[place + 1].to(own[0].device) for place in layers]
        if len(own) != len(wanted) or own[0].shape[-1] != wanted[0].shape[-1]:
            raise ConfigError(
                f"hidden states of {len(own)} layers of width {own[0].shape[-1]} cannot follow "
                f"{len(wanted)} of width {wanted[0].shape[-1]}. Write hidden: 0, or prune this "
                "teacher to get the student."
            )
        mask = batch["attention_mask"].to(own[0].device)
        return hidden_loss(own, wanted, self._options.hidden_kind, mask)


def label_loss(model: Any, logits: Tensor, batch: Any) -> Tensor:
    """How far logits are from a batch's labels, a scalar: cross-entropy for classes and words.

    Causal models predict the next token; without labels, of the text itself.

    Raises:
        ConfigError: The batch has no labels, or a causal model has others than of tokens.
    """
    labels = batch.get("labels")
    causal = bool(getattr(type(model), "__name__", "").endswith(("ForCausalLM", "LMHeadModel")))
    if labels is None and causal:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if labels is None:
        raise ConfigError(
            "the dataset has no labels. Give them as 'label', or write soft: 1 to learn from the "
            "teacher alone."
        )
    labels = labels.to(logits.device)
    if causal:
        if labels.shape != logits.shape[:2]:
            raise ConfigError(
                f"{type(model).__name__} predicts words, so labels must be one for each token, "
                f"{tuple(logits.shape[:2])}, not {tuple(labels.shape)}. Leave them out to learn "
                "the text itself, or take a model that ends in a classifier."
            )
        logits, labels = logits[:, :-1], labels[:, 1:]
    many = getattr(model.config, "problem_type", None) == "multi_label_classification"
    if logits.shape == labels.shape and (many or logits.shape[-1] > 1):  # several classes at once
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
    if logits.shape[-1] == 1:  # a score
        return F.mse_loss(logits.float().squeeze(-1), labels.float().reshape(logits.shape[:-1]))
    return F.cross_entropy(logits.float().flatten(0, -2), labels.long().flatten())
