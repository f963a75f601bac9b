"""Pruned students of a base, taught by it: prune → distil → export, one after the other.

Each student goes on from the one before it, so that every cut is small and what was learned is
kept (iterative pruning and distillation, Minitron, arXiv 2408.11796). Torch works in processes
of its own; every piece is kept, and a build that was killed finds it again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tierwise.compression.dequantize import checkpoint_of
from tierwise.compression.distillation.config import DistillConfig, StudentRecipe
from tierwise.compression.distillation.documents import DataConfig, collect_documents, totals
from tierwise.compression.distillation.tasks import (
    DOCUMENTS,
    HELD_OUT,
    LESSONS,
    RESULT,
    TASK,
    WEIGHTS,
    CaptureTask,
    Counters,
    Job,
    Pruned,
    PruneTask,
)
from tierwise.compression.distillation.teacher_model import choose_teacher
from tierwise.compression.distillation.worker import run_worker
from tierwise.compression.export import export_gguf
from tierwise.compression.reporting import Reporter
from tierwise.compression.source import BaseSource
from tierwise.compression.stages import Stages, content_key
from tierwise.runtime.errors import MissingExtraError
from tierwise.runtime.family import Distillation, Record
from tierwise.runtime.files import FileHashes, write_atomically
from tierwise.runtime.llama import Model

VERSION = 2
"""Raise it when the same config gives other students than before."""


PRUNED = "pruned"


@dataclass(frozen=True, slots=True)
class Student:
    """A recovered model, not quantized yet.

    Args:
        name: Such as "d26", for 26 layers.
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


class _Collected(Record):
    """Documents by source."""

    documents: dict[str, int]


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
    _need_extra()
    return _Class(base, config, stages, reporter, threads).students()


def _need_extra() -> None:
    import importlib.util

    for package in ("torch", "transformers", "accelerate", "gguf", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"distillation needs the package {package!r}: pip install 'tierwise[compress]'"
            )


class _Class:
    """One teacher and its students."""

    def __init__(
        self,
        base: BaseSource,
        config: DistillConfig,
        stages: Stages,
        reporter: Reporter,
        threads: int,
    ) -> None:
        self.base, self.config, self.stages, self.reporter = base, config, stages, reporter
        self.threads = threads
        self.teacher = choose_teacher(base, config)
        self.sha256 = FileHashes.shared().sha256(self.teacher.gguf)
        shared = config.model_dump(mode="json", exclude={"students", "minutes", "steps", "launch"})
        if (own := shared.pop("teacher_model")) is not None:
            shared["student"] = [own, FileHashes.shared().sha256(base.gguf)]
        files = [FileHashes.shared().sha256(path) for path in config.transcripts]
        self.key = content_key(base=self.sha256, shared=shared, files=files, version=VERSION)
        self._read: dict[Path, Path] = {}
        self.folder = stages.folder / f"distil-{self.key}"
        self.folder.mkdir(exist_ok=True)

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
        return tuple(out)

    def _key(self, number: int) -> str:
        """Stands for a student and all those before it."""
        recipes = [one.model_dump(mode="json") for one in self.config.students[: number + 1]]
        limits = [self._limits(one) for one in range(number + 1)]
        return content_key(shared=self.key, recipes=recipes, limits=limits)

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
            name=_name(made),
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
        teacher = self._lessons()
        with Model(self.base.gguf, no_alloc=True) as model:
            layers = model.layers
            ends = tuple(token for token in range(model.vocab_size) if model.is_end(token))
        folder.mkdir(exist_ok=True)
        start = parent or (self._checkpoint(self.base), tuple(range(layers)))
        pruned = self._prune(recipe, folder, start, layers)
        seconds, steps = self._limits(number)
        job = Job(
            config=config,
            seconds=seconds,
            steps=steps,
            aware=recipe.quantization_aware,
            parents=pruned.parents,
            ends=ends,
            teacher=teacher.resolve(),
            start=(folder / "start").resolve(),
            lessons=(self.folder / LESSONS).resolve(),
            held_out=(self.folder / HELD_OUT).resolve(),
            trained=(folder / "trained").resolve(),
        )
        write_atomically(folder / TASK, job.model_dump_json())
        with self.reporter.stage(f"Teaching {_name(pruned)}") as progress:
            run_worker(
                "train",
                folder,
                threads=self.threads,
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
        collected = self.stages.load("documents", self.key, _Collected)
        with Model(self.base.gguf, no_alloc=True) as model:
            layers = model.layers
        name = _name(pruned)
        with self.reporter.stage(f"Exporting {name}") as progress:
            file = export_gguf(
                folder / "trained",
                self._file(key),
                name=f"{self.base.name} {name}",
                vocabulary_from=self.base.gguf,
                progress=progress,
            )
        made = _Made(
            gguf_sha256=FileHashes.shared().sha256(file),
            pruned_layers=tuple(sorted(set(range(layers)) - set(pruned.parents))),
            parents=pruned.parents,
            ffn_channels=pruned.ffn_channels,
            kv_heads=pruned.kv_heads,
            distillation=Distillation(
                teacher_sha256=self.sha256,
                loss=config.loss,
                steps=counters.step,
                skipped_steps=counters.skipped,
                tokens=counters.tokens,
                seconds=round(counters.seconds, 1),
                documents=collected.documents if collected else {},
                quantization_aware=recipe.quantization_aware,
                kl_before=counters.first_kl or 0.0,
                kl_after=counters.last_kl or 0.0,
                curve=tuple(counters.curve),
            ),
        )
        self.stages.save("student", key, made)
        (folder / "state.safetensors").unlink(missing_ok=True)
        shutil.rmtree(folder / "start", ignore_errors=True)
        return made

    def _lessons(self) -> Path:
        """The teacher's checkpoint; lessons and held-out ones are in the folder."""
        from tierwise.compression.distillation.preparation import (
            load_documents,
            save_documents,
        )
        from tierwise.compression.distillation.tensor_files import load_tensors

        teacher = self._checkpoint(self.teacher)
        collected = self.stages.load("documents", self.key, _Collected)
        if collected is None or load_documents(self.folder / DOCUMENTS) is None:
            with self.reporter.stage("Collecting documents") as progress:
                documents = collect_documents(self.teacher.gguf, self._data(), progress=progress)
                save_documents(self.folder / DOCUMENTS, documents)
                collected = _Collected(
                    documents={name: one.documents for name, one in totals(documents).items()}
                )
            self.stages.save("documents", self.key, collected)
        if any(load_tensors(self.folder / name) is None for name in (HELD_OUT, LESSONS)):
            task = CaptureTask(config=self.config, teacher=teacher.resolve(), key=self.sha256)
            write_atomically(self.folder / TASK, task.model_dump_json())
            with self.reporter.stage("Listening to the teacher") as progress:
                run_worker(
                    "capture",
                    self.folder,
                    threads=self.threads,
                    progress=progress,
                    note=self.reporter.note,
                )
        return teacher

    def _checkpoint(self, source: BaseSource) -> Path:
        """A transformers folder of the source, dequantized where it is a GGUF file."""
        folder = self.stages.folder / f"teacher-{FileHashes.shared().sha256(source.gguf)[:16]}"
        if folder not in self._read:
            with self.reporter.stage(f"Reading the weights of {source.name}") as progress:
                self._read[folder] = checkpoint_of(source, folder, progress=progress)
        return self._read[folder]

    def _data(self) -> DataConfig:
        config = self.config
        return DataConfig(
            tokens=config.tokens,
            max_tokens=config.document_tokens,
            transcripts=config.transcripts,
            corpus=config.corpus,
            answers=config.answers,
            cache=self.folder / "answers.jsonl",
            seed=config.seed,
            threads=self.threads,
        )

    def _prune(
        self,
        recipe: StudentRecipe,
        folder: Path,
        parent: tuple[Path, tuple[int, ...]],
        layers: int,
    ) -> Pruned:
        work = folder / PRUNED
        if not (work / RESULT).is_file() or not (folder / "start").is_dir():
            work.mkdir(exist_ok=True)
            task = PruneTask(
                recipe=recipe,
                parent=parent[0].resolve(),
                parents=parent[1],
                base_layers=layers,
                base_ffn=self._ffn(),
                held_out=(self.folder / HELD_OUT).resolve(),
                lessons=(self.folder / LESSONS).resolve(),
                target=(folder / "start").resolve(),
            )
            write_atomically(work / TASK, task.model_dump_json())
            with self.reporter.stage(f"Pruning {self.base.name}") as progress:
                run_worker("prune", work, threads=self.threads, progress=progress)
        return Pruned.model_validate_json((work / RESULT).read_text(encoding="utf-8"))

    def _ffn(self) -> int:
        with Model(self.base.gguf, no_alloc=True) as model:
            return int(model.metadata[f"{model.architecture}.feed_forward_length"])


def _trained(folder: Path) -> Counters | None:
    """How the folder's training went, if it is finished and its weights are whole."""
    try:
        text = (folder / RESULT).read_text(encoding="utf-8")
        counters = Counters.model_validate_json(text)
        found = FileHashes.shared().sha256(folder / "trained" / WEIGHTS)
    except (OSError, ValueError):
        return None
    return counters if counters.weights_sha256 == found else None


def _name(made: Pruned | _Made) -> str:
    parts = [f"d{len(made.parents)}"]
    if made.ffn_channels is not None:
        parts.append(f"f{made.ffn_channels}")
    if made.kv_heads is not None:
        parts.append(f"h{made.kv_heads}")
    return "-".join(parts)
