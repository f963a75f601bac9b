"""Candidates become files: observe what the source's activations are, then quantize with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tierwise.compression.activations import Activations, load_activations, observe
from tierwise.compression.measure import Measurements
from tierwise.compression.plan import Candidate, choose_layers
from tierwise.compression.quantize import quantize
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.reporting import Reporter
from tierwise.compression.stages import Stages, content_key, interruptible
from tierwise.compression.tier_source import TierSource
from tierwise.runtime.files import FileHashes, link_or_copy
from tierwise.runtime.record import Record

LARGE_BYTES = 2_000_000_000
"""Of a quantized base, beyond which no exact copy is made."""


class Made(Record):
    """A quantized file."""

    sha256: str
    bytes: int
    tensor_types: dict[str, int]
    imatrix_sha256: str | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A candidate that was made."""

    candidate: Candidate
    record: Made
    file: Path


class Maker:
    """Makes the candidates of one source, each once.

    Args:
        source: The base or a student.
        readable: A file with the same weights that llama.cpp reads quickly; activations are
            observed in it.
        out: The family's folder, which may hold the tiers of an earlier build.
        measure: Whose calibration text is read.
    """

    def __init__(
        self,
        source: TierSource,
        readable: Path,
        out: Path,
        config: BuildConfig,
        stages: Stages,
        reporter: Reporter,
        measure: Measurements,
        *,
        threads: int,
    ) -> None:
        self._source = source
        self._readable = readable
        self._out = out
        self._config = config
        self._stages = stages
        self._reporter = reporter
        self._measure = measure
        self._threads = threads
        self._seen: Activations | None = None

    @property
    def seen(self) -> Activations:
        """Importance matrix and block influence, from the calibration tasks."""
        if self._seen is None:
            self._seen = self._observe()
        return self._seen

    def _observe(self) -> Activations:
        tokens = self._config.calibration_tokens
        key = content_key(source=self._source.sha256, tokens=tokens, seed=self._config.seed)
        store = self._stages.file("activations", key, ".npz")
        if (known := load_activations(store)) is not None:
            return known
        of = f" of {self._source.name}" if self._source.name else ""
        with self._reporter.stage(f"Observing activations{of}") as progress:
            documents = self._measure.documents("calibration", tokens)
            found = interruptible(
                lambda: observe(self._readable, documents, threads=self._threads, progress=progress)
            )
        found.save(store)
        return found

    def make(self, candidate: Candidate) -> Artifact:
        """Prunes and quantizes one candidate, or finds it made."""
        if candidate.pruned_layers is None:
            layers = choose_layers(self.seen.block_influence, candidate.prune_count)
            candidate = replace(candidate, pruned_layers=layers)
        guided = self._guided(candidate)
        key = content_key(
            source=self._source.sha256,
            quantization=candidate.quantization,
            layers=candidate.pruned_layers,
            overrides=dict(candidate.overrides),
            imatrix=self.seen.imatrix_sha256 if guided else None,
        )
        file = self._stages.file("tier", key, ".gguf")
        record = self._stages.load("tier", key, Made)
        if record is not None:
            for place in (file, *tier_places(self._out, candidate.name, record.sha256)):
                if place.is_file() and FileHashes.shared().sha256(place) == record.sha256:
                    return Artifact(candidate, record, place)
        imatrix = self.seen.imatrix if guided else None
        with self._reporter.stage(f"Making {candidate.name}") as progress:
            kinds: dict[str, int] = {}
            if candidate.quantization == "copy":
                # The hub's cache holds symbolic links, and a hard link of one leads nowhere.
                link_or_copy(self._source.gguf, file)
            else:
                kinds = interruptible(
                    lambda: quantize(
                        self._source.gguf,
                        file,
                        candidate.quantization,
                        pruned_layers=candidate.pruned_layers or (),
                        overrides=candidate.overrides,
                        imatrix=imatrix,
                        threads=self._threads,
                        progress=progress,
                    )
                )
            sha256 = FileHashes.shared().sha256(file)
        record = Made(
            sha256=sha256,
            bytes=file.stat().st_size,
            tensor_types=kinds,
            imatrix_sha256=self.seen.imatrix_sha256 if guided else None,
        )
        self._stages.save("tier", key, record)
        return Artifact(candidate, record, file)

    def _guided(self, candidate: Candidate) -> bool:
        """Whether an importance matrix steers the rounding.

        Weights that were trained to be rounded to a type lie on its grid already: nothing is to
        be weighed against anything.
        """
        return (
            self._config.imatrix
            and candidate.quantization != "copy"
            and (candidate.quantization != self._source.trained_for or bool(candidate.overrides))
        )


def tier_places(out: Path, name: str, sha256: str) -> tuple[Path, Path]:
    """Where a tier's file may be: under its name, and under one that no other content has."""
    return out / f"{name}.gguf", out / f"{name}-{sha256[:8]}.gguf"


def exact_copy(
    source: TierSource, quantized: bool, stages: Stages, reporter: Reporter, *, threads: int
) -> Path:
    """A copy of a quantized base in F16: what its weights are, without rounding of activations.

    llama.cpp rounds activations to 8 bits where weights are quantized, and some types (Q4_1) are
    slow besides. So the base is observed, and candidates are held against it, in this copy.
    Large models are read as they are: the copy would take too much room.
    """
    if not quantized or source.gguf.stat().st_size > LARGE_BYTES:
        return source.gguf
    file = stages.file("exact", content_key(source=source.sha256), ".gguf")
    if not file.is_file():
        with reporter.stage("Unpacking the base model"):
            interruptible(lambda: quantize(source.gguf, file, "F16", threads=threads))
    return file
