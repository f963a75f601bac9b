"""What all students of one teacher share: its checkpoint, the documents, and its word on them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tierwise.compression.dequantize import checkpoint_of
from tierwise.compression.distillation.config import DistillConfig
from tierwise.compression.distillation.corpus import corpus_files
from tierwise.compression.distillation.documents import DataConfig, collect_documents, totals
from tierwise.compression.distillation.tasks import (
    DOCUMENTS,
    HELD_OUT,
    LESSONS,
    TASK,
    CaptureTask,
)
from tierwise.compression.distillation.teacher_model import choose_teacher
from tierwise.compression.distillation.worker import run_worker
from tierwise.compression.reporting import Reporter
from tierwise.compression.source import BaseSource
from tierwise.compression.stages import Stages, content_key
from tierwise.runtime.chat_template import taught_tools
from tierwise.runtime.errors import ConfigError, MissingExtraError
from tierwise.runtime.files import FileHashes, write_atomically
from tierwise.runtime.llama import Model
from tierwise.runtime.record import Record

VERSION = 3
"""Raise it when the same config gives other students than before."""


class _Collected(Record):
    """Documents by source."""

    documents: dict[str, int]


class Teaching:
    """A folder with one teacher's lessons.

    Args:
        base: What students are pruned from.
        config: How they are taught.
        stages: Where everything is kept.
        reporter: Told of the stages.
        threads: For torch and llama.cpp.

    Attributes:
        key: Stands for the teacher and all of the config that students share.
        folder: Of the lessons; students have folders in it.
        teacher: The base itself, or the model that the config names.
        sha256: Of the teacher's file.
        layers: Of the base.
        ffn, kv_heads: MLP channels and KV heads of each of the base's layers.
        ends: Tokens that end a reply.
        taught: Whether the base was trained to call tools by a build of this kind.

    Raises:
        MissingExtraError: torch, transformers, accelerate, gguf or safetensors is missing.
        ConfigError: The teacher has another tokenizer, or a corpus or transcript is not there.
    """

    def __init__(
        self,
        base: BaseSource,
        config: DistillConfig,
        stages: Stages,
        reporter: Reporter,
        threads: int,
    ) -> None:
        _need_extra()
        self.base, self.config, self.stages, self.reporter = base, config, stages, reporter
        self.threads = threads
        self.teacher = choose_teacher(base, config)
        for path in config.transcripts:
            if not path.is_file():
                raise ConfigError(f"there is no transcript {str(path)!r}; check the path")
        sha256_of = FileHashes.shared().sha256
        self.sha256 = sha256_of(self.teacher.gguf)
        shared = config.model_dump(mode="json", exclude={"students", "minutes", "steps", "launch"})
        if (own := shared.pop("teacher_model")) is not None:
            shared["student"] = [own, sha256_of(base.gguf)]
        files = [sha256_of(path) for path in (*config.transcripts, *corpus_files(config.corpus))]
        self.key = content_key(base=self.sha256, shared=shared, files=files, version=VERSION)
        self.folder = stages.folder / f"distil-{self.key}"
        self.folder.mkdir(exist_ok=True)
        with Model(base.gguf, no_alloc=True) as model:
            self.layers = model.layers
            known, prefix = model.metadata, model.architecture
            self.ffn = int(known[f"{prefix}.feed_forward_length"])
            heads = known[f"{prefix}.attention.head_count"]
            self.kv_heads = int(known.get(f"{prefix}.attention.head_count_kv", heads))
            self.taught = taught_tools(model)
            self.ends = tuple(token for token in range(model.vocab_size) if model.is_end(token))
        self._read: dict[Path, Path] = {}

    def checkpoint(self, source: BaseSource) -> Path:
        """A transformers folder of the source, dequantized where it is a GGUF file."""
        folder = self.stages.folder / f"teacher-{FileHashes.shared().sha256(source.gguf)[:16]}"
        if folder not in self._read:
            with self.reporter.stage(f"Reading the weights of {source.name}") as progress:
                self._read[folder] = checkpoint_of(source, folder, progress=progress)
        return self._read[folder]

    def collected(self) -> dict[str, int]:
        """Documents by source, as far as they are collected."""
        known = self.stages.load("documents", self.key, _Collected)
        return known.documents if known is not None else {}

    def lessons(self) -> Path:
        """Makes the folder's lessons and held-out ones, and returns the teacher's checkpoint."""
        from tierwise.compression.distillation.tensor_files import load_tensors

        teacher = self.checkpoint(self.teacher)
        self._collect()
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

    def _collect(self) -> None:
        from tierwise.compression.distillation.preparation import (
            load_documents,
            save_documents,
        )

        known = self.stages.load("documents", self.key, _Collected)
        if known is not None and load_documents(self.folder / DOCUMENTS) is not None:
            return
        with self.reporter.stage("Collecting documents") as progress:
            documents = collect_documents(self.teacher.gguf, self._data(), progress=progress)
            save_documents(self.folder / DOCUMENTS, documents)
        by_source = {name: one.documents for name, one in totals(documents).items()}
        self.stages.save("documents", self.key, _Collected(documents=by_source))

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


def _need_extra() -> None:
    for package in ("torch", "transformers", "accelerate", "gguf", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"distillation needs the package {package!r}: pip install 'tierwise[compress]'"
            )
