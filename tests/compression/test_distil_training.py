"""Capture and training on tiny models: exact where they must be, steady when things go wrong."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import write_tiny_checkpoint
from torch import Tensor

from tierwise.compression.distillation.capture import capture
from tierwise.compression.distillation.config import DistillConfig
from tierwise.compression.distillation.conversations import Document
from tierwise.compression.distillation.job import run_job
from tierwise.compression.distillation.lessons import (
    Lesson,
    collate,
    make_lessons,
    pack,
    plan_epoch,
    unpack,
)
from tierwise.compression.distillation.losses import LOSSES
from tierwise.compression.distillation.on_policy import write_replies
from tierwise.compression.distillation.rounding import round_q4_0
from tierwise.compression.distillation.schedule import Limits
from tierwise.compression.distillation.signal import DenseLogits
from tierwise.compression.distillation.student_loss import CHUNK, StudentLoss
from tierwise.compression.distillation.tasks import RESULT, TASK, Counters, Job
from tierwise.compression.distillation.teacher import Teacher, load_model
from tierwise.compression.distillation.tensor_files import load_tensors, save_tensors
from tierwise.compression.distillation.train import Trainer
from tierwise.compression.distillation.worker import run_worker
from tierwise.compression.pruning.depth import prune_layers
from tierwise.runtime.errors import BuildError, ConfigError, DiskFullError
from tierwise.runtime.files import sha256_of

CAPTURE: dict[str, Any] = {
    "key": "tiny",
    "prompt_share": 0.5,
    "prompt_weight": 0.5,
    "temperature": 1.0,
    "seed": 0,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return write_tiny_checkpoint(folder, family="smollm", layers=4, dtype="float32")


def documents(count: int = 24, *, seed: int = 0, given: bool = False) -> list[Document]:
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        size = int(rng.integers(20, 60))
        tokens = rng.integers(3, 400, size)
        answer = (np.arange(size) >= size - 8).tolist()
        right = answer if given else None
        out.append(Document.of(tokens.tolist(), answer, "tests", str(number), given=right))
    return out


@pytest.fixture(scope="module")
def lessons(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Lesson]:
    folder = tmp_path_factory.mktemp("signal")
    return capture(lambda: Teacher.load(checkpoint), documents(), folder, **CAPTURE)


def student_of(checkpoint: Path) -> Any:
    return prune_layers(load_model(checkpoint, torch.float32), [2])


def config(**values: Any) -> DistillConfig:
    usual: dict[str, Any] = {"on_policy": 0.0, "tokens_per_step": 256, "micro_tokens": 256}
    return DistillConfig.model_validate({**usual, "learning_rate": 3e-3, **values})


def same(one: Sequence[Lesson], other: Sequence[Lesson]) -> bool:
    a, b = pack(one), pack(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- lessons --------------------------------------------------------------------------------------


def test_all_of_a_reply_is_learned_and_some_of_the_prompt() -> None:
    made = make_lessons(documents(), prompt_share=0.5, prompt_weight=0.25, seed=0)
    for document, lesson in zip(documents(), made, strict=True):
        replies = set(range(len(document) - 9, len(document) - 1))
        assert replies <= set(lesson.positions.tolist())
        assert lesson.prompt == len(document) - 8
        for position, weight in zip(lesson.positions.tolist(), lesson.weights, strict=True):
            assert float(weight) == (1.0 if position in replies else 0.25)
    share = sum(len(one.positions) - 8 for one in made) / sum(one.prompt - 1 for one in made)
    assert 0.4 < share < 0.6


def shown_documents() -> list[Document]:
    """Each with twelve tokens in the middle of its prompt that demonstrate something."""
    out = []
    for one in documents():
        tokens, answer = one.tokens.tolist(), one.answer.tolist()
        tokens[5:5] = range(400, 412)
        answer[5:5] = [False] * 12
        out.append(Document.of(tokens, answer, one.source, one.group, (5, 17)))
    return out


def test_a_demonstration_is_read_by_the_teacher_alone() -> None:
    options: dict[str, float] = {"prompt_share": 0.5, "prompt_weight": 0.25}
    whole = make_lessons(shown_documents(), **options, shown=1.0)
    short = make_lessons(shown_documents(), **options, shown=0.0)
    for document, long, brief, plain in zip(
        shown_documents(), whole, short, documents(), strict=True
    ):
        assert long.tokens.tolist() == document.tokens.tolist() and not len(long.hint)
        assert brief.tokens.tolist() == plain.tokens.tolist()
        assert brief.teacher_tokens.tolist() == document.tokens.tolist()
        assert brief.prompt == long.prompt - 12
        # After the same token the same one follows, but for the last before the demonstration:
        # there the teacher has read it to its end.
        for own, theirs in zip(brief.positions, brief.teacher_positions, strict=True):
            assert brief.tokens[own + 1] == brief.teacher_tokens[theirs + 1]
            if own == 4:
                assert theirs == 16
            else:
                assert brief.tokens[own] == brief.teacher_tokens[theirs]
    mixed = make_lessons(shown_documents(), **options, shown=0.5)
    assert 4 < sum(len(one.hint) == 0 for one in mixed) < 20
    batch = collate(short)
    flat, other = batch.tokens.flatten(), batch.teacher_tokens.flatten()
    assert torch.equal(flat[batch.rows + 1], other[batch.teacher_rows + 1])
    assert torch.equal(flat[batch.rows + 1], batch.labels)


def test_the_signal_is_of_a_teacher_that_has_seen_the_demonstration(
    checkpoint: Path, tmp_path: Path
) -> None:
    teacher = Teacher.load(checkpoint)
    found = capture(lambda: teacher, shown_documents(), tmp_path, shown=0.0, **CAPTURE)
    for lesson in found[:4]:
        logits = teacher.logits(
            teacher.hidden(lesson.teacher_tokens[None]), lesson.teacher_positions
        )
        assert lesson.signal is not None
        likeliest = logits.log_softmax(-1).max(dim=-1)
        first = lesson.signal.ids[:, 0]
        assert (first == likeliest.indices).float().mean() > 0.9
    known = pack(found)
    assert same(unpack(known), found)


def test_hard_labels_are_those_of_replies_that_were_given(checkpoint: Path) -> None:
    other = make_lessons(documents(), prompt_share=1.0, prompt_weight=0.5)[0]
    assert not bool(other.given.any())
    lesson = make_lessons(documents(given=True), prompt_share=1.0, prompt_weight=0.5)[0]
    assert lesson.given.sum() == 8 and not bool(lesson.given[:-8].any())
    student = student_of(checkpoint)
    generator = torch.Generator().manual_seed(0)
    (own,) = write_replies(student, [lesson], ends=frozenset({2}), generator=generator)
    assert not bool(own.given.any()) and own.signal is None


def test_lessons_survive_a_file(lessons: list[Lesson], tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", pack(lessons), {})
    known = load_tensors(tmp_path / "x")
    assert known is not None and same(unpack(known[0]), lessons)
    data = bytearray((tmp_path / "x").read_bytes())
    data[-5] ^= 1
    (tmp_path / "x").write_bytes(data)
    assert load_tensors(tmp_path / "x") is None


def test_an_epoch_has_every_lesson_once_in_another_order() -> None:
    lengths = [10 + 7 * (i % 13) for i in range(50)]
    plans = [
        plan_epoch(lengths, tokens_per_step=300, micro_tokens=150, seed=1, epoch=epoch)
        for epoch in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]
    for plan in plans:
        micro = [part for step in plan for part in step]
        assert sorted(number for part in micro for number in part) == list(range(50))
        for part in micro:
            assert max(lengths[n] for n in part) * len(part) <= 150
        for step in plan[:-1]:
            assert sum(lengths[n] for part in step for n in part) <= 315


# --- the teacher's signal -------------------------------------------------------------------------


class Watched(Teacher):
    """A teacher that counts what it reads, and has memory for so many tokens at once."""

    def __init__(self, model: Any, room: int = 10**9) -> None:
        super().__init__(model, torch.device("cpu"))
        self.read, self.room = 0, room

    def hidden(self, tokens: Tensor) -> Tensor:
        if tokens.numel() > self.room:
            raise torch.OutOfMemoryError("as on a small GPU")
        self.read += tokens.numel()
        return super().hidden(tokens)


def test_captured_signals_are_the_teacher_s(checkpoint: Path, lessons: list[Lesson]) -> None:
    model = load_model(checkpoint, torch.bfloat16)
    lesson = lessons[3]
    assert lesson.signal is not None
    with torch.no_grad():
        wanted = model(lesson.tokens[None]).logits[0, lesson.positions].float().softmax(-1)
    best = wanted.topk(16).values
    assert torch.allclose(lesson.signal.weights[:, :16].float(), best, atol=2e-2)
    assert torch.allclose(lesson.signal.weights.float().sum(-1), torch.tensor(1.0), atol=5e-3)


def test_a_capture_goes_on_and_mends_what_is_damaged(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierwise.compression.distillation.capture.SHARD_TOKENS", 200)
    teacher = Watched(load_model(checkpoint, torch.bfloat16))
    notes: list[str] = []

    def run() -> list[Lesson]:
        return capture(lambda: teacher, documents(), tmp_path, note=notes.append, **CAPTURE)

    first = run()
    files = sorted(tmp_path.glob("*.safetensors"))
    whole = teacher.read
    assert len(files) > 3
    teacher.read = 0
    assert same(run(), first) and teacher.read == 0 and notes == []
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-3])
    assert same(run(), first)
    assert 0 < teacher.read < whole
    assert notes == [f"the teacher's signal in {files[1].name} is damaged; it is captured again"]


def test_little_memory_means_smaller_batches(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    notes: list[str] = []
    small = Watched(load_model(checkpoint, torch.bfloat16), room=130)
    found = capture(lambda: small, documents(), tmp_path, note=notes.append, **CAPTURE)
    assert [len(one.positions) for one in found] == [len(one.positions) for one in lessons]
    assert notes and all(note.startswith("out of memory: the teacher reads") for note in notes)
    tiny = Watched(load_model(checkpoint, torch.bfloat16), room=10)
    with pytest.raises(BuildError, match="no memory for a document of"):
        capture(lambda: tiny, documents(), tmp_path / "other", **CAPTURE)


def test_a_full_disk_loses_nothing(checkpoint: Path, tmp_path: Path, file_limit: Any) -> None:
    with file_limit(1000), pytest.raises(DiskFullError, match="run the same command again"):
        capture(lambda: Teacher.load(checkpoint), documents(), tmp_path, **CAPTURE)
    assert list(tmp_path.iterdir()) == []


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_in_chunks_is_the_loss_in_one_piece(checkpoint: Path, loss: str) -> None:
    told = [*documents(20), *documents(20, seed=1, given=True)]
    made = make_lessons(told, prompt_share=1.0, prompt_weight=0.3, seed=0)
    batch = collate(made)
    assert len(batch.rows) > 2 * CHUNK and int(batch.given.sum()) == 20 * 8
    teacher = Teacher(load_model(checkpoint, torch.float32), torch.device("cpu"))
    signal = DenseLogits(teacher.logits(teacher.hidden(batch.tokens), batch.rows))
    student = student_of(checkpoint)
    module = StudentLoss(student, loss=loss, cross_entropy=0.75)
    found = module(batch, signal)
    found.backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    logits = student(batch.tokens).logits.flatten(0, 1)[batch.rows]
    soft = batch.weights * torch.where(batch.given, 0.25, 1.0)
    wanted = LOSSES[loss](logits, signal.logits, mask=soft) * soft.sum()
    hard = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    wanted = wanted + 0.75 * (hard * batch.weights)[batch.given].sum()
    wanted.backward()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    for name, parameter in student.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-3 * scale), name
    with torch.no_grad():
        assert float(module(batch, signal)) == pytest.approx(float(found.detach()), rel=1e-4)


# --- training -------------------------------------------------------------------------------------


def train(
    checkpoint: Path, lessons: list[Lesson], folder: Path, *, steps: int = 12, **options: Any
) -> tuple[Any, Counters, list[str]]:
    torch.manual_seed(0)
    notes: list[str] = []
    student = student_of(checkpoint)
    keys = ("aware", "teacher", "parents", "ends", "progress", "held_out")
    given = {key: options.pop(key) for key in keys if key in options}
    held_out = given.pop("held_out", lessons[:4])
    trainer = Trainer(
        student,
        lessons,  # noise cannot be learned for texts not seen, so these are the held-out ones too
        held_out,
        config(**options),
        Limits(seconds=1e9, steps=steps),
        folder,
        note=notes.append,
        **given,
    )
    return student, trainer.run(), notes


def weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_brings_the_student_nearer(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    _, counters, notes = train(checkpoint, lessons, tmp_path, steps=40)
    assert counters.step == 40 and counters.skipped == 0 and counters.stopped is None
    assert counters.first_kl is not None and counters.last_kl is not None
    assert counters.last_kl < 0.7 * counters.first_kl
    assert [point.step for point in counters.curve] == sorted({p.step for p in counters.curve})
    assert sum(point.kl is not None for point in counters.curve) >= 5
    rates = [point.learning_rate for point in counters.curve]
    assert max(rates) <= 3e-3 and rates[0] < max(rates) and rates[-1] < 0.2 * max(rates)
    assert notes == []


def test_a_run_that_was_killed_ends_with_the_same_weights(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    whole, counters, _ = train(checkpoint, lessons, tmp_path / "whole")

    class Killed(Exception):  # noqa: N818
        pass

    def kill_at(text: str, share: float) -> None:
        if share > 0.7:
            raise Killed

    with pytest.raises(Killed):
        train(checkpoint, lessons, tmp_path / "killed", progress=kill_at)
    again, resumed, _ = train(checkpoint, lessons, tmp_path / "killed")
    assert torch.equal(weights(again), weights(whole))
    assert resumed.tokens == counters.tokens and resumed.last_kl == counters.last_kl
    once_more, _, _ = train(checkpoint, lessons, tmp_path / "killed")
    assert torch.equal(weights(once_more), weights(whole))  # finished: nothing is done again


def test_a_damaged_checkpoint_is_not_used(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    whole, _, _ = train(checkpoint, lessons, tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    again, _, _ = train(checkpoint, lessons, tmp_path)
    assert torch.equal(weights(again), weights(whole))


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    bad = replace(lessons[9], weights=torch.full_like(lessons[9].weights, math.nan))
    student, counters, notes = train(
        checkpoint, [*lessons[:9], bad, *lessons[10:]], tmp_path, steps=8, tokens_per_step=128
    )
    assert 1 <= counters.skipped < 8 and counters.step == 8
    assert len(notes) == counters.skipped and "not finite" in notes[0]
    assert bool(torch.isfinite(weights(student)).all())


def test_a_run_that_diverges_ends_with_its_last_good_state(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    notes: list[str] = []
    student = student_of(checkpoint)

    def wreck(text: str, share: float) -> None:
        if share > 0.5:
            with torch.no_grad():
                student.model.layers[0].mlp.down_proj.weight.mul_(100)

    limits = Limits(seconds=1e9, steps=48)
    trainer = Trainer(
        student,
        lessons,
        lessons[:4],
        config(),
        limits,
        tmp_path,
        progress=wreck,
        note=notes.append,
    )
    counters = trainer.run()
    assert counters.stopped is not None and 20 <= counters.step <= 24
    assert "the held-out KL grew to" in counters.stopped
    assert notes == [f"training stopped: {counters.stopped}. The last good state is used."]
    batch = collate(lessons[:4])
    assert batch.signal is not None and counters.last_kl is not None
    with torch.no_grad():
        kl = StudentLoss(student)(batch, batch.signal) / batch.weights.sum()
    assert float(kl) == pytest.approx(counters.last_kl, abs=0.02)


def test_nothing_but_bad_steps_is_an_error(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    bad = [replace(one, weights=torch.full_like(one.weights, math.nan)) for one in lessons]
    with pytest.raises(BuildError, match=r"learning_rate than 0\.003"):
        train(checkpoint, bad, tmp_path, steps=300, held_out=lessons[:4])


def test_towards_the_end_weights_are_rounded(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    options = {"steps": 60, "aware_share": 0.5}
    aware, with_it, _ = train(checkpoint, lessons, tmp_path / "a", aware="Q4_0", **options)
    plain, _, _ = train(checkpoint, lessons, tmp_path / "b", **options)

    def rounded_kl(student: Any) -> float:
        layers = [m for m in student.model.modules() if isinstance(m, torch.nn.Linear)]
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(round_q4_0(layer.weight))
        batch = collate(lessons[:4])
        assert batch.signal is not None
        with torch.no_grad():
            loss = StudentLoss(student)(batch, batch.signal)
        return float(loss / batch.weights.sum())

    assert rounded_kl(aware) == pytest.approx(with_it.last_kl, abs=0.02)
    assert rounded_kl(aware) < rounded_kl(plain)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "jsd", "teacher": "online"},
        {"hidden": 1.0},
        {"hidden": 1.0, "hidden_kind": "mse"},
        {"on_policy": 0.5},
        {"anchor": 1e-3},
        {"cross_entropy": 0.2, "train_embeddings": True, "gradient_checkpointing": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_else_a_config_can_ask_for(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path, options: dict[str, Any]
) -> None:
    plain, _, _ = train(checkpoint, lessons, tmp_path / "plain", steps=8)
    teacher = Teacher.load(checkpoint)
    if options.pop("teacher", ""):
        lessons = [replace(lesson, signal=None) for lesson in lessons]
    student, counters, _ = train(
        checkpoint,
        lessons,
        tmp_path / "other",
        steps=8,
        teacher=teacher,
        parents=(0, 1, 3),
        ends=frozenset({2}),
        **options,
    )
    assert counters.skipped == 0 and counters.last_kl is not None
    assert counters.first_kl is not None and counters.last_kl < counters.first_kl
    assert not torch.equal(weights(student), weights(plain))


def test_a_student_without_the_last_layer_is_not_held_against_states_of_another_kind(
    checkpoint: Path,
) -> None:
    """What is left of it does what it did, so that no state is apart."""
    batch = collate(make_lessons(documents(4), prompt_share=1.0, prompt_weight=0.3, seed=0))
    teacher = Teacher(load_model(checkpoint, torch.float32), torch.device("cpu"))
    student = prune_layers(load_model(checkpoint, torch.float32), [3])
    last, states = teacher.hidden_after(batch.teacher_tokens, (0, 1, 2))
    signal = DenseLogits(teacher.logits(last, batch.teacher_rows))
    found = [
        float(StudentLoss(student, hidden=weight)(batch, signal, states).detach())
        for weight in (0.0, 1.0)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_replies_that_are_right_are_learned_by_heart(checkpoint: Path, tmp_path: Path) -> None:
    teacher = Teacher.load(checkpoint)
    made = capture(lambda: teacher, documents(8, given=True), tmp_path / "signal", **CAPTURE)
    options: dict[str, Any] = {"held_out": made, "steps": 24}
    _, by_heart, _ = train(checkpoint, made, tmp_path / "hard", cross_entropy=1.0, **options)
    _, from_teacher, _ = train(checkpoint, made, tmp_path / "soft", cross_entropy=0.0, **options)
    assert by_heart.first_nll == from_teacher.first_nll
    assert by_heart.first_nll and by_heart.last_nll and from_teacher.last_nll
    assert by_heart.last_nll < 0.5 * by_heart.first_nll < from_teacher.last_nll
    assert by_heart.curve[-1].nll == by_heart.last_nll
    # What the prompts say is still learned from the teacher, and alone counts as its KL.
    student = student_of(checkpoint)
    batch = collate(made)
    assert batch.signal is not None
    with torch.no_grad():
        soft = replace(batch, weights=batch.weights * ~batch.given)
        kl = StudentLoss(student)(soft, batch.signal) / soft.weights.sum()
    assert by_heart.first_kl == pytest.approx(float(kl), abs=0.02)
    assert from_teacher.first_kl != pytest.approx(by_heart.first_kl, abs=1e-4)


def test_the_teacher_is_not_asked_where_the_right_reply_is_given(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher.load(checkpoint)
    made = capture(lambda: teacher, documents(8, given=True), tmp_path / "signal", **CAPTURE)
    asked: list[int] = []
    for share in (0.0, 0.5):
        plain = teacher.hidden_after
        monkeypatch.setattr(teacher, "hidden_after", _counting(plain, asked))
        train(
            checkpoint,
            made,
            tmp_path / str(share),
            steps=4,
            on_policy=0.9,
            cross_entropy=share,
            teacher=teacher,
            ends=frozenset({2}),
        )
        assert bool(asked) == (share == 0.0)
        asked.clear()


def _counting(of: Any, calls: list[int]) -> Any:
    def counted(*args: Any) -> Any:
        calls.append(1)
        return of(*args)

    return counted


def test_the_student_writes_its_own_replies(checkpoint: Path, lessons: list[Lesson]) -> None:
    student = load_model(checkpoint, torch.float32)
    ends = frozenset(range(200))  # every second token ends a reply

    def written() -> list[Lesson]:
        generator = torch.Generator().manual_seed(5)
        return write_replies(student, lessons[:6], ends=ends, generator=generator, longest=12)

    first = written()
    for lesson, own in zip(lessons[:6], first, strict=True):
        assert torch.equal(own.tokens[: own.prompt], lesson.tokens[: lesson.prompt])
        reply = own.tokens[own.prompt :].tolist()
        assert 1 <= len(reply) <= 12
        assert not any(token in ends for token in reply[:-1])
        assert own.positions.tolist() == list(range(own.prompt - 1, len(own.tokens) - 1))
    assert len({len(own.tokens) - own.prompt for own in first}) > 1
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, written(), strict=True))


# --- jobs, in processes of their own --------------------------------------------------------------


def make_job(
    checkpoint: Path, lessons: list[Lesson], folder: Path, *, steps: int = 6, **options: Any
) -> Job:
    folder.mkdir()
    start = folder / "start"
    student_of(checkpoint).save_pretrained(start)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (start / name).write_bytes((checkpoint / name).read_bytes())
    save_tensors(folder / "lessons", pack(lessons), {})
    save_tensors(folder / "held_out", pack(lessons[:4]), {})
    aware = options.pop("aware", None)
    job = Job(
        config=config(**options),
        seconds=1e9,
        steps=steps,
        aware=aware,
        parents=(0, 1, 3),
        ends=(2,),
        teacher=checkpoint,
        start=start,
        lessons=folder / "lessons",
        held_out=folder / "held_out",
        trained=folder / "trained",
    )
    (folder / TASK).write_text(job.model_dump_json())
    return job


def test_a_job_leaves_a_checkpoint(checkpoint: Path, lessons: list[Lesson], tmp_path: Path) -> None:
    job = make_job(checkpoint, lessons, tmp_path / "job", aware="Q4_0")
    counters = run_job(tmp_path / "job")
    known = Counters.model_validate_json((tmp_path / "job" / RESULT).read_text())
    assert known.weights_sha256 == sha256_of(job.trained / "model.safetensors")
    assert known == counters.model_copy(update={"weights_sha256": known.weights_sha256})
    trained = load_model(job.trained, torch.float32)
    assert trained.config.num_hidden_layers == 3
    weight = trained.model.layers[0].mlp.up_proj.weight
    assert torch.allclose(round_q4_0(weight), weight, atol=1e-6)
    assert (job.trained / "tokenizer.json").is_file()


def test_adapters_train_and_vanish(checkpoint: Path, lessons: list[Lesson], tmp_path: Path) -> None:
    job = make_job(checkpoint, lessons, tmp_path / "job", lora_rank=4, steps=30)
    counters = run_job(tmp_path / "job")
    assert counters.first_kl is not None and counters.last_kl is not None
    assert counters.last_kl < counters.first_kl
    trained, start = (load_model(path, torch.float32) for path in (job.trained, job.start))
    assert [name for name, _ in trained.named_parameters()] == [
        name for name, _ in start.named_parameters()
    ]
    change = trained.model.layers[1].mlp.up_proj.weight - start.model.layers[1].mlp.up_proj.weight
    assert 0 < int(torch.linalg.matrix_rank(change.detach(), atol=1e-5)) <= 4
    assert torch.equal(trained.model.norm.weight, start.model.norm.weight)
    make_job(checkpoint, lessons, tmp_path / "both", lora_rank=4, aware="Q4_0")
    with pytest.raises(ConfigError, match="leave one of them out"):
        run_job(tmp_path / "both")


@pytest.mark.slow
def test_a_worker_that_is_killed_goes_on(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    wanted = make_job(checkpoint, lessons, tmp_path / "whole", steps=24)
    run_worker("train", tmp_path / "whole", threads=1)
    job = make_job(checkpoint, lessons, tmp_path / "killed", steps=24)
    command = [sys.executable, "-P", "-m", "tierwise.compression.distillation.worker", "train"]
    with subprocess.Popen(
        [*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if json.loads(line).get("share", 0) > 0.3:
                child.send_signal(signal.SIGKILL)
                break
    assert not job.trained.exists() and (tmp_path / "killed" / "state.safetensors").exists()
    told: list[str] = []
    run_worker("train", tmp_path / "killed", threads=1, progress=lambda t, _: told.append(t))
    assert told and not told[0].startswith("step 1,")
    one, other = (load_model(path, torch.float32) for path in (wanted.trained, job.trained))
    assert torch.equal(weights(one), weights(other))


@pytest.mark.slow
def test_accelerate_takes_a_job_to_two_processes(
    checkpoint: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    alone = make_job(checkpoint, lessons, tmp_path / "alone", micro_tokens=64, on_policy=0.3)
    run_worker("train", tmp_path / "alone", threads=1)
    together = make_job(checkpoint, lessons, tmp_path / "two", micro_tokens=64, on_policy=0.3)
    launch = f"{sys.executable} -m accelerate.commands.launch --cpu --num_processes 2"
    launch += " --num_machines 1 --mixed_precision bf16 --dynamo_backend no --main_process_port 0"
    run_worker("train", tmp_path / "two", threads=1, launch=launch)
    results = [
        Counters.model_validate_json((job.trained.parent / RESULT).read_text())
        for job in (alone, together)
    ]
    assert results[0].step == results[1].step and results[0].tokens > 0
    assert results[0].first_kl == pytest.approx(results[1].first_kl, rel=1e-3)
    # The off-policy steps are the same but for rounding; on policy each writes its own replies.
    assert results[0].curve[2].loss == pytest.approx(results[1].curve[2].loss, rel=0.02)
    assert results[1].last_kl is not None and results[1].first_kl is not None
    assert results[1].last_kl < results[1].first_kl


def test_a_worker_s_errors_arrive(checkpoint: Path, lessons: list[Lesson], tmp_path: Path) -> None:
    job = make_job(checkpoint, lessons, tmp_path / "job")
    job.lessons.write_bytes(b"damaged")
    with pytest.raises(BuildError, match=r"is damaged\. Run the same command again"):
        run_worker("train", tmp_path / "job", threads=1)
    with pytest.raises(BuildError, match=r"ended with code 1\. It said last: .*No such file"):
        run_worker("train", tmp_path / "nowhere", threads=1)
    with pytest.raises(ConfigError, match="launch: 'no-such-program' cannot be started"):
        run_worker("train", tmp_path / "job", threads=1, launch="no-such-program")
