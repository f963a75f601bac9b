"""``build_family``: one base model in, a measured family of tiers out.

plan → observe → [prune → quantize] → measure → keep or drop with the reason → publish.
Every stage is kept by the hash of its inputs: killed at any point, the same call goes on where
it was, and ``family.json`` comes last. Recovery by distillation belongs between prune and
quantize, where a pruned checkpoint is at hand.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tierwise import __version__
from tierwise.compression.activations import Activations, load_activations, observe
from tierwise.compression.base_record import describe_base
from tierwise.compression.front import REFERENCE_PROMPT, REFERENCE_REPLY, Measured, split_front
from tierwise.compression.measure import Measurements, measure_drafts
from tierwise.compression.plan import Candidate, Plan, choose_layers, plan_tiers
from tierwise.compression.quantize import quantize
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.reporting import Reporter, Silent
from tierwise.compression.source import BaseSource, resolve_base
from tierwise.compression.stages import Stages, content_key, interruptible
from tierwise.runtime.errors import FamilyError
from tierwise.runtime.family import MANIFEST, Divergence, Family, Lineage, Quality, Record, Tier
from tierwise.runtime.files import FileHashes, link_or_copy
from tierwise.runtime.llama import Model
from tierwise.runtime.profile import Profile
from tierwise.runtime.resources import probe

WORK = ".build"


class _Made(Record):
    """A quantized file."""

    sha256: str
    bytes: int
    tensor_types: dict[str, int]
    imatrix_sha256: str | None


class _Done(Record):
    """The last finished build of this folder."""

    key: str


def build_family(
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    reporter: Reporter | None = None,
) -> Family:
    """Makes a family of tiers from one base model, or finishes one that was begun.

    Args:
        base: A GGUF file, a transformers folder, a Hugging Face id, or ``bundled:smollm2``.
        out: The family's folder. A family that is there already is replaced at the very end.
        config: Defaults keep three tiers.
        reporter: Hears about stages and dropped tiers.

    Raises:
        ModelError: The base is missing, damaged or of an unsupported shape.
        ConfigError: The config cannot be met.
        DiskFullError: There is no room. What is finished is kept; the same call goes on.
    """
    config = config or BuildConfig()
    source = resolve_base(os.fspath(base))
    return _Build(source, Path(out), config, reporter or Silent()).run()


@dataclass(frozen=True, slots=True)
class _Artifact:
    """A candidate that was made."""

    candidate: Candidate
    record: _Made
    file: Path


class _Build:
    """One run over the stages."""

    def __init__(
        self, source: BaseSource, out: Path, config: BuildConfig, reporter: Reporter
    ) -> None:
        self.gguf = source.gguf
        self.out = out
        self.config = config
        self.reporter = reporter
        self.stages = Stages(out / WORK)
        self.threads = config.threads or probe().threads
        with reporter.stage("Reading the base model"):
            self.base, self.file_type = describe_base(source)
        self.measure = Measurements(
            self.gguf, self.base, config, self.stages, reporter, threads=self.threads
        )

    def run(self) -> Family:
        key = content_key(base=self.base.sha256, config=self.config.model_dump(mode="json"))
        done = self.stages.load("done", "last", _Done)
        if done is not None and done.key == key and (family := self._existing()) is not None:
            self.reporter.note("This family was built already from the same base and options.")
            files = {tier.name: family.path(tier) for tier in family.tiers}
            for name, file in files.items():  # the machine may be another one
                self.measure.profile(name, file)
            measure_drafts(files, reporter=self.reporter)
            return family
        plan = plan_tiers(
            self.gguf, file_type=self.file_type, layers=self.base.layers, config=self.config
        )
        for name, reason in plan.skipped.items():
            self.reporter.note(f"not made: {name} ({reason})")
        seen = self._observe(plan)
        made = {candidate.name: self._make(candidate, seen) for candidate in plan.candidates}
        files = {name: artifact.file for name, artifact in made.items()}
        divergences = self.measure.divergences(files)
        profiles = {name: self.measure.profile(name, file) for name, file in files.items()}
        kept, dropped = self._choose(made, divergences, profiles)
        for name, reason in dropped.items():
            self.reporter.note(f"dropped: {name} ({reason})")
        measure_drafts({name: files[name] for name in kept}, reporter=self.reporter)
        tiers = []
        for name in kept:
            tools = self.measure.success(name, files[name])
            quality = Quality(
                divergence=divergences[name],
                tools=tools,
                kv_q8_0=self.measure.kv_divergence(name, files[name]),
            )
            tiers.append((self._tier(made[name], quality), files[name]))
        family = self._publish(tiers, {**plan.skipped, **dropped})
        self.stages.save("done", "last", _Done(key=key))
        return family

    def _existing(self) -> Family | None:
        try:
            return Family.load(self.out)
        except FamilyError:
            return None

    def _observe(self, plan: Plan) -> Activations:
        """Importance matrix and block influence, from the calibration tasks."""
        if not self.config.imatrix and all(c.pruned_layers is not None for c in plan.candidates):
            return Activations({}, np.full(self.base.layers, np.nan), 0)
        tokens = self.config.calibration_tokens
        key = content_key(base=self.base.sha256, tokens=tokens, seed=self.config.seed)
        store = self.stages.file("activations", key, ".npz")
        if (known := load_activations(store)) is not None:
            return known
        with self.reporter.stage("Observing activations") as progress:
            documents = self.measure.documents("calibration", tokens)
            found = interruptible(
                lambda: observe(self.gguf, documents, threads=self.threads, progress=progress)
            )
        found.save(store)
        return found

    def _make(self, candidate: Candidate, seen: Activations) -> _Artifact:
        """Prunes and quantizes one candidate."""
        if candidate.pruned_layers is None:
            layers = choose_layers(seen.block_influence, candidate.prune_count)
            candidate = replace(candidate, pruned_layers=layers)
        key = content_key(
            base=self.base.sha256,
            quantization=candidate.quantization,
            layers=candidate.pruned_layers,
            calibration=[self.config.calibration_tokens, self.config.seed]
            if self.config.imatrix
            else None,
        )
        file = self.stages.file("tier", key, ".gguf")
        record = self.stages.load("tier", key, _Made)
        if record is not None:
            for place in (file, self.out / f"{candidate.name}.gguf"):
                if place.is_file() and FileHashes.shared().sha256(place) == record.sha256:
                    return _Artifact(candidate, record, place)
        imatrix = seen.imatrix if self.config.imatrix and candidate.quantization != "copy" else None
        with self.reporter.stage(f"Making {candidate.name}") as progress:
            kinds: dict[str, int] = {}
            if candidate.quantization == "copy":
                # The hub's cache holds symbolic links, and a hard link of one leads nowhere.
                link_or_copy(self.gguf, file)
            else:
                kinds = interruptible(
                    lambda: quantize(
                        self.gguf,
                        file,
                        candidate.quantization,
                        pruned_layers=candidate.pruned_layers or (),
                        imatrix=imatrix,
                        threads=self.threads,
                        progress=progress,
                    )
                )
            sha256 = FileHashes.shared().sha256(file)
        record = _Made(
            sha256=sha256,
            bytes=file.stat().st_size,
            tensor_types=kinds,
            imatrix_sha256=seen.imatrix_sha256 if imatrix else None,
        )
        self.stages.save("tier", key, record)
        return _Artifact(candidate, record, file)

    def _choose(
        self,
        made: dict[str, _Artifact],
        divergences: dict[str, Divergence],
        profiles: dict[str, Profile],
    ) -> tuple[list[str], dict[str, str]]:
        measured = [
            Measured(
                name=name,
                bytes=artifact.record.bytes,
                seconds=profiles[name].seconds(REFERENCE_PROMPT, REFERENCE_REPLY, cold=False),
                kl=divergences[name].kl_mean,
                top1=divergences[name].top1_agreement.value,
            )
            for name, artifact in made.items()
        ]
        if self.config.keep_all:
            return [m.name for m in sorted(measured, key=lambda m: m.seconds)], {}
        front, dropped = split_front(
            measured, most=self.config.tiers, min_top1=self.config.min_top1
        )
        return [tier.name for tier in front], dropped

    def _tier(self, artifact: _Artifact, quality: Quality) -> Tier:
        candidate, made, file = artifact.candidate, artifact.record, artifact.file
        with Model(file, no_alloc=True) as model:
            parameters, layers = model.parameters, model.layers
            kv_bytes = model.kv_bytes_per_token
        copied = candidate.quantization == "copy"
        return Tier(
            name=candidate.name,
            file=f"{candidate.name}.gguf",
            sha256=made.sha256,
            bytes=made.bytes,
            parameters=parameters,
            layers=layers,
            context_tokens=self.base.context_tokens,
            kv_bytes_per_token=kv_bytes,
            lineage=Lineage(
                origin="built",
                quantization=self.file_type if copied else candidate.quantization,
                pruned_layers=candidate.pruned_layers or (),
                imatrix_sha256=made.imatrix_sha256,
                tensor_types=made.tensor_types,
            ),
            quality=quality,
        )

    def _adopted(self, names: list[str]) -> list[Tier]:
        """Tiers that were adopted into the family that this one replaces; they stay."""
        before = self._existing()
        if before is None or before.base.tokenizer_sha256 != self.base.tokenizer_sha256:
            return []
        return [t for t in before.tiers if t.lineage.origin == "adopted" and t.name not in names]

    def _publish(self, tiers: list[tuple[Tier, Path]], dropped: dict[str, str]) -> Family:
        """Puts the files in their places, then writes the manifest; then tidies up."""
        family = Family(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tierwise=__version__,
            base=self.base,
            tiers=(*(tier for tier, _ in tiers), *self._adopted([tier.name for tier, _ in tiers])),
            dropped=dropped,
        )
        (self.out / MANIFEST).unlink(missing_ok=True)
        for tier, file in tiers:
            place = self.out / tier.file
            if not (place.exists() and file.samefile(place)):
                link_or_copy(file, place)
        family.save(self.out)
        for leftover in self.stages.folder.iterdir():  # also those of builds that were killed
            if leftover.suffix in (".gguf", ".part", ".f16"):
                leftover.unlink()
        return family
