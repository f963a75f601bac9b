"""One student's training as a folder: what it starts from, what it learns, and what comes out.

A folder can be handed to another process, to several of them (``accelerate launch -m
tierwise.compression.distillation.worker train FOLDER``), or to another machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tierwise.compression.distillation.config import DistillConfig
from tierwise.compression.distillation.lessons import unpack
from tierwise.compression.distillation.lora import add_adapters, merge_adapters
from tierwise.compression.distillation.rounding import round_weights
from tierwise.compression.distillation.schedule import Limits
from tierwise.compression.distillation.tasks import RESULT, TASK, WEIGHTS, Counters, Job
from tierwise.compression.distillation.teacher import Teacher, head_of, load_model
from tierwise.compression.distillation.tensor_files import load_tensors
from tierwise.compression.distillation.train import Trainer
from tierwise.compression.reporting import Progress
from tierwise.runtime.errors import BuildError, ConfigError
from tierwise.runtime.files import sha256_of, write_atomically


def run_job(
    folder: Path,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Counters:
    """Trains the student of a job folder, or goes on where that was killed.

    Raises:
        BuildError: The lessons are damaged, or training went wrong from the start.
        ConfigError: Options that do not go together.
        DiskFullError: There is no room; the last checkpoint is kept.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    job = Job.model_validate_json((folder / TASK).read_text(encoding="utf-8"))
    config = job.config
    if config.lora_rank is not None and job.aware is not None:
        raise ConfigError(
            "quantization-aware training changes all weights, and lora_rank trains adapters "
            "alone: leave one of them out"
        )
    accelerator = Accelerator(mixed_precision="bf16")
    set_seed(config.seed)
    student = load_model(job.start, torch.float32)
    if config.lora_rank is not None:
        add_adapters(student, config.lora_rank)
    lessons, held_out = (_read_lessons(file) for file in (job.lessons, job.held_out))
    trainer = Trainer(
        student,
        lessons,
        held_out,
        config,
        Limits(job.seconds, job.steps),
        folder,
        aware=job.aware,
        teacher=Teacher.load(job.teacher, accelerator.device) if _needs_teacher(job) else None,
        parents=job.parents,
        ends=frozenset(job.ends),
        accelerator=accelerator,
        progress=progress,
        note=note,
    )
    counters = trainer.run()
    if accelerator.is_main_process:
        if config.lora_rank is not None:
            merge_adapters(student)
        if job.aware is not None:
            round_weights(student, job.aware, head_of(student))
        _save(student, job)
        weights_sha256 = sha256_of(job.trained / WEIGHTS)
        done = counters.model_copy(update={"weights_sha256": weights_sha256})
        write_atomically(folder / RESULT, done.model_dump_json())
    accelerator.wait_for_everyone()
    return counters


def _needs_teacher(job: Job) -> bool:
    config = job.config
    return bool(online(config) or config.on_policy or config.hidden)


def online(config: DistillConfig) -> bool:
    """Whether the teacher answers anew at every step, instead of once for all."""
    if config.teacher == "auto":
        return config.loss != "forward_kl"
    return config.teacher == "online"


def _read_lessons(file: Path) -> list[Any]:
    known = load_tensors(file)
    if known is None:
        raise BuildError(f"{str(file)!r} is damaged. Run the same command again: it is made anew.")
    return unpack(known[0])


def _save(student: Any, job: Job) -> None:
    """The trained checkpoint, with the tokenizer of the one it started from."""
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    part = job.trained.with_name(job.trained.name + ".part")
    student.to("cpu").save_pretrained(part, max_shard_size="1TB")  # one file, one hash
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (job.start / name).is_file():
            (part / name).write_bytes((job.start / name).read_bytes())
    (part / "distillation.json").write_text(
        json.dumps(job.config.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8"
    )
    if job.trained.exists():
        shutil.rmtree(job.trained)
    part.rename(job.trained)
