"""What narrower and shallower students of SmolLM2 lose before any training, and how quick they are.

    python benchmarks/compression_shapes.py [--base NAME] [--shapes LxF...] [--rounds N]
        [--json FILE]

A shape is the number of layers and of MLP channels, "26x1536". Layers go in the order that a greedy
search by KL finds, channels by importance, and what stays is refitted; calibration and held-out
text are generated conversations of different splits. ``kl_mean`` is KL(base ‖ student) per token of
the held-out ones. ``speedup`` is the seconds of the base at Q8_0 for 400 tokens of prompt and 20 of
reply, divided by the shape's at Q8_0 and at Q4_0, the least of so many rounds in turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import arguments, report, say

from tierwise.compression.dequantize import checkpoint_of
from tierwise.compression.export import export_gguf
from tierwise.compression.pruning.decoder import decoder_of
from tierwise.compression.pruning.depth import prune_layers, removal_order
from tierwise.compression.pruning.width import prune_width
from tierwise.compression.quantize import quantize
from tierwise.compression.source import resolve_base
from tierwise.evaluation.quick_speed import quick_speed
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.texts import chat_documents
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.llama import Model
from tierwise.runtime.resources import probe

SHAPES = ("30x1152", "30x640", "28x768", "26x1536", "26x1024", "22x1536")
TYPES = ("Q8_0", "Q4_0")
PROMPT, REPLY = 400, 20
CALIBRATION_TASKS, SEARCH_TASKS, HELD_OUT_TASKS = 40, 8, 10


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", default="bundled:smollm2")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="LxF")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    threads = probe().threads
    torch.set_num_threads(threads)
    base = resolve_base(options.base)
    wanted = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        losses, files = make_all(base, wanted, folder, threads=threads)
        speeds = time_in_turn(files, options.rounds, threads=threads)
    whole = speeds["base-Q8_0"]
    report(
        {
            name: {
                "kl_mean": round(loss, 4),
                "speedup": {
                    kind: round(sum(whole) / sum(speeds[f"{name}-{kind}"]), 3) for kind in TYPES
                },
            }
            for name, loss in losses.items()
        },
        options.json,
    )


def make_all(
    base: Any, wanted: Sequence[tuple[int, ...]], folder: Path, *, threads: int
) -> tuple[dict[str, float], dict[str, Path]]:
    """Each shape's KL, and its files by name and type."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint_of(base, folder / "base"), dtype=torch.float32, local_files_only=True
    ).eval()
    calibration = batches_of(base.gguf, "calibration", CALIBRATION_TASKS)
    held_out = batches_of(base.gguf, "test", HELD_OUT_TASKS)
    layers, channels = len(decoder_of(model).layers), decoder_of(model).ffn
    losses: dict[str, float] = {}
    files: dict[str, Path] = {"base-Q8_0": folder / "base-Q8_0.gguf"}
    quantize(base.gguf, files["base-Q8_0"], "Q8_0", threads=threads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        most = layers - min(count for count, _ in wanted)
        say(f"choosing {most} layers")
        order = [one.layer for one in removal_order(model, calibration[:SEARCH_TASKS], most)]
    for count, width in wanted:
        name = f"{count}x{width}"
        say(f"making {name}")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            student = prune_layers(model, order[: layers - count]) if count < layers else model
            if width < channels:
                student = prune_width(student, calibration, channels=width)
            losses[name] = divergence(model, student, held_out)
        student.save_pretrained(folder / name)
        whole = export_gguf(folder / name, folder / f"{name}.gguf", vocabulary_from=base.gguf)
        for kind in TYPES:
            files[f"{name}-{kind}"] = folder / f"{name}-{kind}.gguf"
            quantize(whole, files[f"{name}-{kind}"], kind, threads=threads)
    return losses, files


def batches_of(base: Path, split: Any, tasks: int) -> list[torch.Tensor]:
    """Conversations, each of shape (1, tokens)."""
    with Model(base, vocab_only=True) as model:
        texts = chat_documents(generate_tasks(tasks, seed=3, split=split), ChatTemplate.of(model))
        return [torch.tensor([model.tokenize(text)]) for text in texts]


@torch.no_grad()
def divergence(model: Any, student: Any, batches: Sequence[torch.Tensor]) -> float:
    """Mean KL per token, in nats."""
    total, tokens = 0.0, 0
    for ids in batches:
        base, own = (
            one(input_ids=ids).logits[0].float().log_softmax(-1) for one in (model, student)
        )
        total += float((base.exp() * (base - own)).sum())
        tokens += ids.shape[1]
    return total / tokens


def time_in_turn(
    files: dict[str, Path], rounds: int, *, threads: int
) -> dict[str, tuple[float, float]]:
    """Prefill and decode seconds of each file, the least of the rounds."""
    found: dict[str, list[Any]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, file in files.items():
            speed = quick_speed(file, prompt_tokens=PROMPT, reply_tokens=REPLY, threads=threads)
            found[name].append(speed)
    return {
        name: (min(one.prefill_s for one in all_), min(one.decode_s for one in all_))
        for name, all_ in found.items()
    }


if __name__ == "__main__":
    main()
