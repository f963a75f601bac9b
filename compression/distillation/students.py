"""Pruned students of a base, taught by it: prune → distil → export, one after the other.

Each student goes on from the one before it, so that every cut is small and what was learned is
kept (iterative pruning and distillation, Minitron, arXiv 2408.11796). Torch works in processes
of its own; every piece is kept, and a build that was killed finds it again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tierwise.compression.distillation.config import DistillConfig, StudentRecipe
from tierwise.compression.distillation.tasks import (
    HELD_OUT,
    LESSONS,
    RESULT,
    TASK,
    WEIGHTS,
    Counters,
    Job,
    Pruned,
    PruneTask,
)
from tierwise.compression.distillation.teaching import Teaching
from tierwise.compression.distillation.worker import run_worker
from tierwise.compression.export import export_gguf
from tierwise.compression.reporting import Reporter
from tierwise.compression.source import BaseSource
from tierwise.compression.stages import Stages, content_key
from tierwise.runtime.files import FileHashes, write_atomically
from tierwise.runtime.lineage import Distillation
from tierwise.runtime.record import Record

PRUNED = "pruned"


@dataclass(frozen=True, slots=True)
class Student:
    """A recovered model, not quantized yet.

    Args:
        name: Such as "d26", for 26 layers; "d26-n2" for the second of that shape.
        gguf: Its F16 GGUF file.
        pruned_layers: The base's layers that went.
        ffn_channels, kv_heads: Per layer, where some went.
        distillation: How it was taught.
        quantization: The type that it was trained to be rounded to, e.g. "Q4_0".
    """

    name: str
    gguf: Path
    pruned_layers: tuple[int, ...]
    ffn_channels: int | None
    kv_heads: int | None
    distillation: Distillation
    quantization: str | None


class _Made(Record):
    """A finished student."""

    gguf_sha256: str
    pruned_layers: tuple[int, ...]
    parents: tuple[int, ...]
    ffn_channels: int | None
    kv_heads: int | None
    distillation: Distillation


def make_students(
    base: BaseSource,
    config: DistillConfig,
    stages: Stages,
    reporter: Reporter,
    *,
    threads: int,
) -> tuple[Student, ...]:
    """All students of the config, from the largest to the smallest.

    Args:
        base: The teacher.
        stages: Where everything is kept; a second call with the same arguments finds it there.
        threads: For torch and llama.cpp.

    Raises:
        MissingExtraError: torch, transformers, accelerate, gguf or safetensors is missing.
        UnsupportedModelError: The base has a shape that cannot be pruned or exported.
        ConfigError: Options that do not go together.
        BuildError: Training failed; the message says why.
        DiskFullError: There is no room; the same call goes on.
    """
    teaching = Teaching(base, config, stages, reporter, threads)
    return _Class(teaching).students()


class _Class:
    """All students of one teaching."""

    def __init__(self, teaching: Teaching) -> None:
        self.teaching = teaching
        self.base, self.config, self.stages = teaching.base, teaching.config, teaching.stages
        self.reporter, self.folder = teaching.reporter, teaching.folder
        self.names: list[str] = []

    def students(self) -> tuple[Student, ...]:
        keys = [self._key(number) for number in range(len(self.config.students))]
        known = [self._known(key) for key in keys]
        out: list[Student] = []
        parent: tuple[Path, tuple[int, ...]] | None = None
        for number, (key, made) in enumerate(zip(keys, known, strict=True)):
            if made is None:
                made = self._make(number, key, parent)
            parent = self.folder / key / "trained", made.parents
            out.append(self._student(number, key, made))
            self.names.append(out[-1].name)
        return tuple(out)

    def _key(self, number: int) -> str:
        """Stands for a student and all those before it."""
        recipes = [one.model_dump(mode="json") for one in self.config.students[: number + 1]]
        limits = [self._limits(one) for one in range(number + 1)]
        return content_key(shared=self.teaching.key, recipes=recipes, limits=limits)

    def _limits(self, number: int) -> tuple[float, int | None]:
        """Seconds and steps of one student."""
        config = self.config
        share = config.students[number].share / sum(one.share for one in config.students)
        if config.steps is not None:
            return 0.0, max(1, round(config.steps * share))
        return round(config.minutes * 60 * share, 3), None

    def _file(self, key: str) -> Path:
        return self.stages.file("student", key, ".student.gguf")

    def _known(self, key: str) -> _Made | None:
        made = self.stages.load("student", key, _Made)
        file = self._file(key)
        if made is None or not file.is_file() or not (self.folder / key / "trained").is_dir():
            return None
        return made if FileHashes.shared().sha256(file) == made.gguf_sha256 else None

    def _student(self, number: int, key: str, made: _Made) -> Student:
        recipe = self.config.students[number]
        return Student(
            name=self._name(made),
            gguf=self._file(key),
            pruned_layers=made.pruned_layers,
            ffn_channels=made.ffn_channels,
            kv_heads=made.kv_heads,
            distillation=made.distillation,
            quantization=recipe.quantization_aware,
        )

    def _train(
        self, number: int, folder: Path, parent: tuple[Path, tuple[int, ...]] | None
    ) -> None:
        """Leaves the folder's ``trained`` checkpoint and how it went."""
        recipe, config = self.config.students[number], self.config
        teacher = self.teaching.lessons()
        folder.mkdir(exist_ok=True)
        start = parent or (self.teaching.checkpoint(self.base), tuple(range(self.teaching.layers)))
        pruned = self._prune(recipe, folder, start)
        seconds, steps = self._limits(number)
        job = Job(
            config=config,
            seconds=seconds,
            steps=steps,
            aware=recipe.quantization_aware,
            parents=pruned.parents,
            ends=self.teaching.ends,
            teacher=teacher.resolve(),
            start=(folder / "start").resolve(),
            lessons=(self.folder / LESSONS).resolve(),
            held_out=(self.folder / HELD_OUT).resolve(),
            trained=(folder / "trained").resolve(),
        )
        write_atomically(folder / TASK, job.model_dump_json())
        with self.reporter.stage(f"Teaching {self._called(pruned)}") as progress:
            run_worker(
                "train",
                folder,
                threads=self.teaching.threads,
                launch=config.launch,
                progress=progress,
                note=self.reporter.note,
            )

    def _make(self, number: int, key: str, parent: tuple[Path, tuple[int, ...]] | None) -> _Made:
        recipe, config = self.config.students[number], self.config
        folder = self.folder / key
        counters = _trained(folder)
        if counters is None:
            self._train(number, folder, parent)
            counters = _trained(folder)
            assert counters is not None
        pruned = Pruned.model_validate_json((folder / PRUNED / RESULT).read_text(encoding="utf-8"))
        base = self.base.name
        with self.reporter.stage(f"Exporting {self._called(pruned)}") as progress:
            file = export_gguf(
                folder / "trained",
                self._file(key),
                name=base if self._whole(pruned) else f"{base} {self._name(pruned)}",
                vocabulary_from=self.base.gguf,
                taught_tools=self.teaching.taught or config.shown < 1,
                progress=progress,
            )
        made = _Made(
            gguf_sha256=FileHashes.shared().sha256(file),
            pruned_layers=tuple(sorted(set(range(self.teaching.layers)) - set(pruned.parents))),
            parents=pruned.parents,
            ffn_channels=pruned.ffn_channels,
            kv_heads=pruned.kv_heads,
            distillation=Distillation(
                teacher_sha256=self.teaching.sha256,
                loss=config.loss,
                steps=counters.step,
                skipped_steps=counters.skipped,
                tokens=counters.tokens,
                seconds=round(counters.seconds, 1),
                documents=self.teaching.collected(),
                quantization_aware=recipe.quantization_aware,
                kl_before=counters.first_kl or 0.0,
                kl_after=counters.last_kl or 0.0,
                cross_entropy=config.cross_entropy,
                nll_before=counters.first_nll,
                nll_after=counters.last_nll,
                curve=tuple(counters.curve),
            ),
        )
        self.stages.save("student", key, made)
        (folder / "state.safetensors").unlink(missing_ok=True)
        shutil.rmtree(folder / "start", ignore_errors=True)
        return made

    def _prune(
        self,
        recipe: StudentRecipe,
        folder: Path,
        parent: tuple[Path, tuple[int, ...]],
    ) -> Pruned:
        work = folder / PRUNED
        if not (work / RESULT).is_file() or not (folder / "start").is_dir():
            work.mkdir(exist_ok=True)
            task = PruneTask(
                recipe=recipe,
                parent=parent[0].resolve(),
                parents=parent[1],
                base_layers=self.teaching.layers,
                base_ffn=self.teaching.ffn,
                base_kv_heads=self.teaching.kv_heads,
                held_out=(self.folder / HELD_OUT).resolve(),
                lessons=(self.folder / LESSONS).resolve(),
                target=(folder / "start").resolve(),
            )
            write_atomically(work / TASK, task.model_dump_json())
            prunes = recipe != StudentRecipe(
                quantization_aware=recipe.quantization_aware, share=recipe.share
            )
            doing = "Pruning" if prunes else "Preparing"
            with self.reporter.stage(f"{doing} {self.base.name}") as progress:
                run_worker("prune", work, threads=self.teaching.threads, progress=progress)
        return Pruned.model_validate_json((work / RESULT).read_text(encoding="utf-8"))

    def _whole(self, made: Pruned) -> bool:
        """Whether nothing was taken out of it: then it is the base, taught."""
        narrow = made.ffn_channels is not None or made.kv_heads is not None
        return len(made.parents) == self.teaching.layers and not narrow

    def _called(self, made: Pruned) -> str:
        return self.base.name if self._whole(made) else self._name(made)

    def _name(self, made: Pruned | _Made) -> str:
        """Told by the shape, and by a number where an earlier student has the same."""
        shape = _shape(made)
        number = sum(name.split("-n")[0] == shape for name in self.names)
        return f"{shape}-n{number + 1}" if number else shape


def _trained(folder: Path) -> Counters | None:
    """How the folder's training went, if it is finished and its weights are whole."""
    try:
        text = (folder / RESULT).read_text(encoding="utf-8")
        counters = Counters.model_validate_json(text)
        found = FileHashes.shared().sha256(folder / "trained" / WEIGHTS)
    except (OSError, ValueError):
        return None
    return counters if counters.weights_sha256 == found else None


def _shape(made: Pruned | _Made) -> str:
    parts = [f"d{len(made.parents)}"]
    if made.ffn_channels is not None:
        parts.append(f"f{made.ffn_channels}")
    if made.kv_heads is not None:
        parts.append(f"h{made.kv_heads}")
    return "-".join(parts)
