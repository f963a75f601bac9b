"""How much nearer to the base our searched mixes of types are than llama.cpp's own file types of
at most the same bytes.

    python benchmarks/compression_allocation.py [--base NAME] [--generic] [--work DIR] [--json FILE]

``allocation_kld_ratio`` is the mean KL of our mix from the base, divided by that of the best of
llama.cpp's file types that is no larger, for three sizes. All have the same importance matrix. The
KL is of text that neither the matrix nor the search saw: generated tasks of the split "test", and
topics of Python's own help.

The bundled base is a dequantized Q4_1, which Q4_1 keeps exactly: a mix that stays near it has less
to lose than one of a model in 16 bits. ``--generic`` takes this away: every weight of the base is
first moved at random within its rounding step, so that no type is exact any more.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pydoc_data.topics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import report, say
from pydantic import BaseModel

from tierwise.compression.activations import load_activations, observe
from tierwise.compression.precision.ggml import Weight, read_weights
from tierwise.compression.precision.header import read_header
from tierwise.compression.precision.search import search_precision
from tierwise.compression.quantize import FILE_TYPES, ImportanceMatrix, plan_quantization, quantize
from tierwise.compression.source import resolve_base
from tierwise.compression.stages import Stages, content_key
from tierwise.evaluation.divergence import BaseDistribution
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.texts import chat_documents
from tierwise.evaluation.tool_catalog import Split
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import BuildError
from tierwise.runtime.files import FileHashes
from tierwise.runtime.llama import Model
from tierwise.runtime.resources import probe

BUDGETS = ("Q4_0", "IQ3_XXS", "IQ2_M")
"""The sizes are those of these file types: the largest below Q4_1, the middle, the smallest that
is not far worse than all others. For a base in 16 bits `GENERIC_BUDGETS`."""

GENERIC_BUDGETS = ("Q4_K_M", "Q4_0", "IQ3_XXS")

WORTH_MEASURING = 0.95
"""Of a budget's bytes: smaller types are far worse, and some of them take minutes to make."""

LONGEST = 1500
"""Characters of a document, some 400 tokens."""

CALIBRATION_TASKS = 24
HELD_OUT_TASKS = 8

MODULES = ("argparse", "statistics", "logging", "threading", "pathlib", "decimal", "sqlite3")


class Measured(BaseModel):
    """A file that was made and measured."""

    bytes: int
    kl_mean: float
    kl_p999: float
    top1: float


def texts_of(base: Path, split: Split, tasks: int) -> list[str]:
    """Documents in some order, two thirds of them agent tasks and one third plain English."""
    with Model(base, vocab_only=True) as model:
        chats = chat_documents(generate_tasks(tasks, seed=7, split=split), ChatTemplate.of(model))
    topics = pydoc_data.topics.topics
    calibrating = split == "calibration"
    plain = "\n\n".join(
        map(_documentation, MODULES) if calibrating else (topics[name] for name in sorted(topics))
    )
    starts = np.linspace(0, len(plain) - LONGEST, tasks // 2).round().astype(int)
    # Tasks begin alike: their ends have the request and the answer.
    mixed = [text[-LONGEST:] for text in chats]
    mixed += [plain[start : start + LONGEST] for start in starts]
    return [mixed[index] for index in np.random.default_rng(0).permutation(len(mixed))]


def _documentation(module: str) -> str:
    """Every docstring of a module of the standard library."""
    found = importlib.import_module(module)
    members = [member for _, member in inspect.getmembers(found)]
    inner = [inspect.getmembers(member) for member in members if inspect.isclass(member)]
    members += [member for group in inner for _, member in group if callable(member)]
    texts = [inspect.getdoc(found), *map(inspect.getdoc, members)]
    return "\n\n".join(dict.fromkeys(text for text in texts if text))


def generic_weights(base: Path, target: Path) -> Path:
    """The base in F16, each weight moved at random within its rounding step."""
    quantize(base, target, "F16")
    tensors = read_header(target).tensors
    content = np.memmap(target, dtype=np.uint8, mode="r+")
    rng = np.random.default_rng(0)
    for name, weight in read_weights(base).items():
        noise = rng.uniform(-0.5, 0.5, (weight.rows, weight.width)).astype(np.float32)
        moved = (weight.floats() + noise * _steps(weight)).astype(np.float16)
        info = tensors[name]
        content[info.offset : info.offset + info.bytes] = moved.reshape(-1).view(np.uint8)
    content.flush()
    return target


def _steps(weight: Weight) -> Any:
    """The distance between neighbouring values, for each weight: blocks of 32 begin with it."""
    if weight.kind.name not in ("Q8_0", "Q4_1", "Q4_0", "Q5_0", "Q5_1"):
        return np.float32(0)
    blocks = weight.data.reshape(weight.rows, weight.width // 32, -1)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16).astype(np.float32)
    return np.repeat(np.abs(scales[:, :, 0]), 32, axis=1)


class Bench:
    """One base, and what was measured of its files."""

    def __init__(self, base: Path, folder: Path, *, threads: int) -> None:
        self.base, self.stages, self.threads = base, Stages(folder), threads
        self.sha256 = FileHashes.shared().sha256(base)
        calibration = texts_of(base, "calibration", CALIBRATION_TASKS)
        with Model(base, vocab_only=True) as model:
            self.calibration = [model.tokenize(text) for text in calibration]
            held_out = texts_of(base, "test", HELD_OUT_TASKS)
            self.held_out = [model.tokenize(text) for text in held_out]
        key = content_key(base=self.sha256, text=calibration)
        store = self.stages.file("activations", key, ".npz")
        seen = load_activations(store)
        if seen is None:
            say("reading the calibration text")
            seen = observe(base, calibration, threads=threads)
            seen.save(store)
        self.imatrix: ImportanceMatrix = seen.imatrix
        self._reference: BaseDistribution | None = None

    def measured(self, file_type: str, overrides: dict[str, str] | None = None) -> Measured:
        key = content_key(base=self.sha256, type=file_type, overrides=overrides, text=self.held_out)
        known = self.stages.load("measured", key, Measured)
        if known is not None:
            return known
        say(f"making and measuring {'our mix' if overrides else file_type}")
        if self._reference is None:
            self._reference = BaseDistribution(
                self.base,
                self.held_out,
                self.stages.file("base", "logprobs", ".f16"),
                threads=self.threads,
            )
        file = self.stages.file("made", key, ".gguf")
        quantize(
            self.base,
            file,
            file_type,
            overrides=overrides,
            imatrix=self.imatrix,
            threads=self.threads,
        )
        found = self._reference.compare(file, threads=self.threads)
        record = Measured(
            bytes=file.stat().st_size,
            kl_mean=found.kl_mean,
            kl_p999=found.kl_p999,
            top1=found.top1_agreement.value,
        )
        file.unlink()
        self.stages.save("measured", key, record)
        return record

    def stock(self, budget: int) -> dict[str, Measured]:
        """llama.cpp's file types of at most ``budget`` bytes, but for those far below it."""
        out = {}
        for name in FILE_TYPES:
            try:
                size = plan_quantization(self.base, name, imatrix=self.imatrix).bytes
            except BuildError:
                continue  # no such file can be made of this model
            if budget * WORTH_MEASURING <= size <= budget:
                out[name] = self.measured(name)
        return out

    def close(self) -> None:
        if self._reference is not None:
            self._reference.close()


def allocation_figures(
    base: Path, folder: Path, *, threads: int, budgets: Sequence[str] = BUDGETS
) -> dict[str, Any]:
    """``allocation_kld_ratio`` and what it is made of, for each size.

    Args:
        base: A GGUF file.
        folder: Keeps what was measured, for another run.
        budgets: File types whose sizes are the budgets.
    """
    bench = Bench(base, folder, threads=threads)
    sizes: dict[str, Any] = {}
    try:
        for name in budgets:
            budget = plan_quantization(base, name, imatrix=bench.imatrix).bytes
            stock = bench.stock(budget)
            best = min(stock, key=lambda kind: stock[kind].kl_mean)
            began = time.perf_counter()
            mix = search_precision(
                base,
                budget_bytes=budget,
                imatrix=bench.imatrix,
                documents=bench.calibration,
                stages=bench.stages,
                threads=threads,
            )
            seconds = time.perf_counter() - began
            ours = bench.measured(mix.file_type, dict(mix.overrides))
            sizes[name] = {
                "budget_bytes": budget,
                "best_stock": best,
                "stock": {kind: record.model_dump() for kind, record in stock.items()},
                "ours": ours.model_dump(),
                "ours_predicted_kl": round(mix.predicted_kl, 5),
                "ours_types": _shares(base, mix.overrides),
                "search_s": round(seconds, 2),
                "ratio": round(ours.kl_mean / stock[best].kl_mean, 4),
            }
            assert ours.bytes <= budget
            say(
                f"{name}: {ours.bytes:,} bytes, KL {ours.kl_mean:.4f} against {best} "
                f"{stock[best].kl_mean:.4f} ({stock[best].bytes:,} bytes)"
            )
    finally:
        bench.close()
    return {
        "allocation_kld_ratio": {name: size["ratio"] for name, size in sizes.items()},
        "allocation": sizes,
        "held_out_tokens": sum(map(len, bench.held_out)),
    }


def _shares(base: Path, overrides: dict[str, str] | Any) -> dict[str, dict[str, int]]:
    """How many tensors of each kind have each type."""
    out: dict[str, dict[str, int]] = {}
    for name, kind in overrides.items():
        part = name.split(".", 2)[-1] if name.startswith("blk.") else name
        counts = out.setdefault(part.removesuffix(".weight"), {})
        counts[kind] = counts.get(kind, 0) + 1
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="bundled:smollm2")
    parser.add_argument("--generic", action="store_true", help="no weight is exact in any type")
    parser.add_argument("--work", type=Path, help="keep what is measured here, for another run")
    parser.add_argument("--threads", type=int, default=probe().threads)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        base = resolve_base(options.base).gguf
        budgets = BUDGETS
        if options.generic:
            folder.mkdir(parents=True, exist_ok=True)
            base, budgets = generic_weights(base, folder / "generic.gguf"), GENERIC_BUDGETS
        figures = allocation_figures(base, folder, threads=options.threads, budgets=budgets)
    report(figures, options.json)


if __name__ == "__main__":
    main()
