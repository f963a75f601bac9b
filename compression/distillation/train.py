"""The training loop: lessons in, a recovered student out.

Runs under Hugging Face Accelerate: ``accelerate launch`` takes the same job to several
processes or GPUs. A run that was killed goes on from its last checkpoint, with the same random
states and the same place in the data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tierwise.compression.distillation.anchor import Anchor
from tierwise.compression.distillation.config import DistillConfig
from tierwise.compression.distillation.held_out import HeldOut, held_out_measures
from tierwise.compression.distillation.lessons import Lesson, collate, plan_epoch
from tierwise.compression.distillation.on_policy import write_replies
from tierwise.compression.distillation.rounding import rounded
from tierwise.compression.distillation.schedule import Limits, learning_rate
from tierwise.compression.distillation.signal import DenseLogits, TeacherSignal
from tierwise.compression.distillation.student_loss import StudentLoss
from tierwise.compression.distillation.tasks import Counters
from tierwise.compression.distillation.teacher import Teacher, head_of
from tierwise.compression.distillation.training_state import load_state, save_state
from tierwise.compression.reporting import Progress
from tierwise.runtime.errors import BuildError
from tierwise.runtime.lineage import CurvePoint

CLIP = 1.0
EVALUATIONS = 12
"""On held-out lessons, spread over the run; each also keeps a checkpoint."""

BAD_STEPS = 10
"""So many steps in a row that are not finite end a run."""

DIVERGED = 2.0
"""A run ends whose held-out KL grows to this multiple of its best one."""

ON_POLICY_PROMPTS = 16


class Trainer:
    """One student's run.

    Args:
        student: A decoder of transformers in float32; trained in place.
        lessons: What it learns from.
        held_out: What it is measured on.
        config: See `DistillConfig`.
        limits: When to stop.
        folder: For the checkpoint.
        aware: Type that weights are rounded to towards the end; None for none.
        teacher: Needed where lessons have no signal, for hidden states, and on policy.
        parents: The teacher's layer that each of the student's came from.
        ends: Tokens that end a reply.
        accelerator: An ``accelerate.Accelerator``; made here if not given.
    """

    def __init__(
        self,
        student: Any,
        lessons: Sequence[Lesson],
        held_out: Sequence[Lesson],
        config: DistillConfig,
        limits: Limits,
        folder: Path,
        *,
        aware: str | None = None,
        teacher: Teacher | None = None,
        parents: Sequence[int] = (),
        ends: frozenset[int] = frozenset(),
        accelerator: Any = None,
        progress: Progress | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.accelerator = accelerator or Accelerator(mixed_precision="bf16")
        self.config, self.limits, self.aware = config, limits, aware
        self.lessons, self.held_out = lessons, held_out
        self.teacher, self.parents, self.ends = teacher, tuple(parents), ends
        self.file = folder / "state.safetensors"
        self.say = note or (lambda text: None)
        self.tell = progress or (lambda text, share: None)
        self.student = student
        if config.lora_rank is None and not config.train_embeddings:
            student.get_input_embeddings().requires_grad_(False)
            head_of(student).requires_grad_(False)
        if config.gradient_checkpointing:
            _checkpoint_activations(student)
        loss = StudentLoss(
            student,
            loss=config.loss,
            temperature=config.temperature,
            cross_entropy=config.cross_entropy,
            hidden=config.hidden,
            hidden_kind=config.hidden_kind,
        )
        parameters = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.model, self.optimizer = self.accelerator.prepare(loss, optimizer)
        self.anchor = Anchor(student, config.anchor)
        self.counters = Counters()

    # --- the run ------------------------------------------------------------------------------

    def run(self) -> Counters:
        """Trains until the limits are reached; goes on where an earlier run was killed.

        Raises:
            DiskFullError: A checkpoint could not be written; the one before it is kept.
            BuildError: Not one step was finite.
        """
        with ExitStack() as stack:
            known = load_state(self.file, self.student, self._plain_optimizer)
            self.counters = known or Counters()
            if self.counters.finished:
                return self.counters
            aware = self._aware_at(self._share)
            if aware:
                stack.enter_context(self._rounding())
            if known is None:
                first = self._evaluate()
                self.counters = Counters(
                    first_kl=first.kl,
                    last_kl=first.kl,
                    best_kl=first.kl,
                    first_nll=first.nll,
                    last_nll=first.nll,
                )
            self.student.train()
            for step, micro in self._steps():
                if not aware and self._aware_at(self._share):
                    aware = True
                    stack.enter_context(self._rounding())
                    self.counters.best_kl = None  # rounding has a price, and a new start
                if not self._step(step, micro):
                    break
            self._finish()
        return self.counters

    @property
    def _share(self) -> float:
        return self.limits.share(self.counters.step, self.counters.seconds)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner

    def _aware_at(self, share: float) -> bool:
        return self.aware is not None and share >= 1 - self.config.aware_share

    def _rounding(self) -> Any:
        assert self.aware is not None
        return rounded(self.student, self.aware, head_of(self.student))

    def _steps(self) -> Iterator[tuple[int, list[list[Lesson]]]]:
        """Steps from where the run is, for ever: (number, micro-batches)."""
        lengths = [len(lesson.tokens) for lesson in self.lessons]
        while True:
            plan = plan_epoch(
                lengths,
                tokens_per_step=self.config.tokens_per_step,
                micro_tokens=self.config.micro_tokens,
                seed=self.config.seed,
                epoch=self.counters.epoch,
            )
            for step in plan[self.counters.position :]:
                chosen = [[self.lessons[number] for number in micro] for micro in step]
                self.counters.position += 1
                yield self.counters.step, chosen
            self.counters.epoch += 1
            self.counters.position = 0

    def _step(self, number: int, micro: list[list[Lesson]]) -> bool:
        """One optimizer step; False when the run is over."""
        counters, share = self.counters, self._share
        began = time.perf_counter()
        own = None
        if self.teacher is not None and share >= 1 - self.config.on_policy:
            own = self._own_replies(number, micro)
        rate = learning_rate(self.config.learning_rate, counters.step, share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        micro = own or micro
        loss = self._gradients(micro, "reverse_kl" if own else None)
        norm = self.accelerator.clip_grad_norm_(self.student.parameters(), CLIP)
        finite = math.isfinite(loss) and bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
            counters.skipped_in_row = 0
        else:
            counters.skipped += 1
            counters.skipped_in_row += 1
            self.say(f"step {number}: loss or gradient is not finite; the step is skipped")
        self.optimizer.zero_grad()
        counters.step += 1
        counters.tokens += sum(len(lesson.tokens) for part in micro for lesson in part)
        counters.seconds += self._slowest(time.perf_counter() - began)
        self._mark(number, loss, rate)
        self.tell(
            f"step {counters.step:,}, loss {loss:.3f}, KL {counters.last_kl or 0:.3f}", self._share
        )
        if counters.skipped_in_row >= BAD_STEPS:
            return self._go_back(f"{BAD_STEPS} steps in a row were not finite")
        over = self._share >= 1
        if over or int(self._share * EVALUATIONS) > int(share * EVALUATIONS):
            return self._checkpoint(over)
        return True

    def _gradients(self, micro: list[list[Lesson]], loss: str | None) -> float:
        """Backward passes of this process's share of the step; the loss per position."""
        total = sum(float(lesson.weights.sum()) for part in micro for lesson in part)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        own = micro[rank::world]
        scale = world / max(total, 1e-12)  # wrapped in DDP, gradients are averaged
        value = torch.zeros((), device=self.accelerator.device)
        if not own:  # all must take part in the exchange of gradients
            own, scale = micro[:1], 0.0
        for index, part in enumerate(own):
            last = index == len(own) - 1
            # Gradients are exchanged in the backward pass of the last part alone.
            quiet = nullcontext() if last else self.accelerator.no_sync(self.model)
            with quiet:
                result = self._loss(part, loss) * scale
                if last and self.config.anchor:
                    result = result + self.anchor.penalty()
                self.accelerator.backward(result)
            value += result.detach()
        return float(self.accelerator.reduce(value, "mean"))

    def _loss(self, lessons: list[Lesson], loss: str | None) -> Tensor:
        batch = collate(lessons).to(self.accelerator.device)
        hidden: list[Tensor] = []
        signal: TeacherSignal | None = batch.signal
        with self.accelerator.autocast():
            if signal is None or (self.config.hidden and loss is None):
                assert self.teacher is not None
                last, hidden = self.teacher.hidden_after(
                    batch.teacher_tokens, self.parents if self.config.hidden else ()
                )
                if signal is None:
                    signal = DenseLogits(self.teacher.logits(last, batch.teacher_rows))
            result: Tensor = self.model(batch, signal, hidden, loss)
        return result

    def _own_replies(self, number: int, micro: list[list[Lesson]]) -> list[list[Lesson]] | None:
        """The same prompts, answered by the student: one part for each process; None without."""
        asked = [lesson for part in micro for lesson in part if self._worth_asking(lesson)]
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        prompts = asked[rank::world][:ON_POLICY_PROMPTS] or asked[:1]
        if not prompts:
            return None
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        with self.accelerator.autocast():
            own = write_replies(self.student, prompts, ends=self.ends, generator=generator)
        parts: list[list[Lesson]] = [own[:1] for _ in range(world)]
        parts[rank] = own
        return parts

    def _worth_asking(self, lesson: Lesson) -> bool:
        """Whether the teacher knows best: where the right reply is given, it need not be asked."""
        return lesson.prompt > 0 and not (self.config.cross_entropy and bool(lesson.given.any()))

    # --- looking back -------------------------------------------------------------------------

    def _mark(self, number: int, loss: float, rate: float) -> None:
        """Adds to the curve, at most some hundred points in all."""
        if not math.isfinite(loss):
            return
        curve, counters = self.counters.curve, self.counters
        if curve and self._share - self.limits.share(curve[-1].step, curve[-1].seconds) < 0.01:
            return
        curve.append(
            CurvePoint(
                step=number + 1,
                tokens=counters.tokens,
                seconds=round(counters.seconds, 3),
                loss=loss,
                learning_rate=rate,
            )
        )

    def _evaluate(self) -> HeldOut:
        return held_out_measures(
            self.student,
            self.held_out,
            temperature=self.config.temperature,
            cross_entropy=self.config.cross_entropy,
            teacher=self.teacher,
            accelerator=self.accelerator,
        )

    def _checkpoint(self, over: bool) -> bool:
        """Measures and keeps the state; False when the run is over or has diverged."""
        counters = self.counters
        began = time.perf_counter()
        found = self._evaluate()
        kl = found.kl
        if not math.isfinite(kl) or (counters.best_kl and kl > DIVERGED * counters.best_kl + 0.1):
            return self._go_back(
                f"the held-out KL grew to {kl:.3f} from {counters.best_kl or 0:.3f}"
            )
        counters.last_kl, counters.last_nll = kl, found.nll
        counters.best_kl = min(kl, counters.best_kl or math.inf)
        if counters.curve:
            counters.curve[-1] = counters.curve[-1].model_copy(update={"kl": kl, "nll": found.nll})
        counters.finished = over
        if self.accelerator.is_main_process:
            save_state(self.file, self.student, self._plain_optimizer, counters)
        self.accelerator.wait_for_everyone()
        counters.seconds += self._slowest(time.perf_counter() - began)
        return not over

    def _go_back(self, why: str) -> bool:
        """Ends a run that went wrong with its last good state."""
        skipped = self.counters.skipped
        known = load_state(self.file, self.student)
        if known is None:
            raise BuildError(
                f"training went wrong before its first checkpoint: {why}. Use a smaller "
                f"learning_rate than {self.config.learning_rate:g}."
            )
        self.counters = known.model_copy(update={"stopped": why, "skipped": skipped})
        self.say(f"training stopped: {why}. The last good state is used.")
        return False

    def _finish(self) -> None:
        self.counters.finished = True
        if self.counters.stopped and self.accelerator.is_main_process:
            save_state(self.file, self.student, self._plain_optimizer, self.counters)

    def _slowest(self, seconds: float) -> float:
        """The longest of all processes' times, so that all of them decide alike."""
        if self.accelerator.num_processes == 1:
            return seconds
        own = torch.tensor([seconds], device=self.accelerator.device)
        return float(self.accelerator.gather(own).max())


def _checkpoint_activations(student: Any) -> None:
    """Recompute activations in the backward pass; transformers 5 gave the switch another name."""
    name = "activation_checkpointing_enable"
    enable = getattr(student, name, None) or student.gradient_checkpointing_enable
    enable({"use_reentrant": False})
