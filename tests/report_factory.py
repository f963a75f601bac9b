"""A family with everything that a build can leave behind, for what reads families.

The GGUF files are real (pruned and quantized here); what was supposedly measured is data.
"""

from __future__ import annotations

import math
from pathlib import Path

from family_factory import TierSpec, make_family, make_quality

from tierwise.compression.quantize import quantize
from tierwise.compression.report.tried import Tried
from tierwise.evaluation.tasks import wilson_interval
from tierwise.runtime.family import Divergence, Family, Quality, Sample, Tier
from tierwise.runtime.lineage import CurvePoint, Distillation, Lineage

PRUNED = (2, 3)
"""Layers that the two small tiers are without."""

PREFILL, DECODE = 300, 40


def write_files(base: Path, folder: Path, *, layers: int = 6) -> dict[str, Path]:
    """The tiers' files by name: two pruned ones, a mixed one and a large one."""
    gone = PRUNED if layers == 6 else (3, 12, 13, 14, 25)
    files = {}
    for name, kind, pruned in (
        ("fast", "Q4_0", gone),
        ("quick", "Q8_0", gone),
        ("mixed", "Q4_K_M", ()),
        ("best", "Q8_0", ()),
    ):
        files[name] = folder / f"{name}.gguf"
        quantize(base, files[name], kind, pruned_layers=pruned, threads=1)
    return files


def make_curve(steps: int, start: float, end: float) -> tuple[CurvePoint, ...]:
    """A loss that falls from the one to the other, with waves; KL at every fifth point."""
    points = []
    for step in range(0, steps + 1, max(1, steps // 40)):
        left = math.exp(-4 * step / steps)
        kl = end + (start - end) * left
        points.append(
            CurvePoint(
                step=step,
                tokens=2048 * step,
                seconds=8.5 * step,
                loss=kl * (1.1 + 0.12 * math.sin(step)),
                learning_rate=4e-4 * (0.55 + 0.45 * math.cos(math.pi * step / steps)),
                kl=kl if len(points) % 5 == 0 else None,
            )
        )
    return tuple(points)


def make_distillation(steps: int = 400, start: float = 1.9, end: float = 0.21) -> Distillation:
    """A run whose curve ends where it says."""
    return Distillation(
        teacher_sha256="ab" * 32,
        loss="forward_kl",
        steps=steps,
        skipped_steps=2,
        tokens=2048 * steps,
        seconds=8.5 * steps,
        documents={"agent tasks": 1200, "transcripts": 80},
        quantization_aware="Q4_0",
        kl_before=start,
        kl_after=end,
        curve=make_curve(steps, start, end),
    )


def make_samples(right: tuple[bool, ...]) -> tuple[Sample, ...]:
    """The same three tasks; ``right`` says which were solved."""
    asked = (
        ("choose_tool-easy-0001", "What is the weather in Oslo tomorrow?", "get_weather", "Oslo"),
        ("fill_arguments-medium-0007", "Convert 5 miles to kilometers.", "convert_units", "5"),
        ("choose_tool-hard-0031", "Book a table for 4 at Maaemo at 19:30.", "book_table", "4"),
    )
    return tuple(
        Sample(
            task=task,
            prompt=prompt,
            expected=f'{tool}({{"value": "{value}"}})',
            reply=f'{tool}({{"value": "{value}"}})' if ok else "I am sorry, I cannot do that.",
            passed=ok,
        )
        for (task, prompt, tool, value), ok in zip(asked, right, strict=True)
    )


def rich_family(
    folder: Path, files: dict[str, Path], *, pruned: tuple[int, ...] = PRUNED
) -> Family:
    """Four tiers: two of one distilled student, one with searched types, and a plain one."""
    figures = {  # KL, top-1 of 3072, tool success of 64, prefill and decode tokens/s
        "fast": (0.3204, 2310, 40, 1450.0, 182.0),
        "quick": (0.2101, 2460, 44, 1180.0, 121.0),
        "mixed": (0.0312, 2803, 48, 760.0, 104.0),
        "best": (0.0051, 2967, 49, 640.0, 78.0),
    }
    specs = [
        TierSpec(
            name,
            files[name],
            kl=figures[name][0],
            prefill=figures[name][3],
            decode=figures[name][4],
        )
        for name in figures
    ]
    family = make_family(folder, specs)
    run = make_distillation()
    lineages = {
        "fast": {"quantization": "Q4_0", "pruned_layers": pruned, "distillation": run},
        "quick": {"quantization": "Q8_0", "pruned_layers": pruned, "distillation": run},
        "mixed": {
            "quantization": "Q4_K_M",
            "imatrix_sha256": "cd" * 32,
            "tensor_overrides": {"blk.0.attn_v.weight": "Q8_0", "blk.1.ffn_down.weight": "Q6_K"},
        },
        "best": {"quantization": "Q8_0", "tensor_types": {"q8_0": 43, "f32": 13}},
    }
    right = {"fast": (True, False, False), "quick": (True, True, False)}
    tiers = []
    for tier in family.tiers:
        kl, top1, solved, _, _ = figures[tier.name]
        plain = make_quality(kl, {"easy": 0.9, "medium": 0.75, "hard": 0.5})
        assert plain.tools is not None
        quality = Quality(
            divergence=Divergence(
                tokens=3072,
                kl_mean=kl,
                kl_p999=9.0 * kl,
                top1_agreement=wilson_interval(top1, 3072),
                perplexity=9.1 + kl,
                base_perplexity=9.1,
            ),
            tools=plain.tools.model_copy(update={"overall": wilson_interval(solved, 64)}),
            samples=make_samples(right.get(tier.name, (True, True, True))),
        )
        change: dict[str, object] = {
            "lineage": Lineage(origin="built", **lineages[tier.name]),  # type: ignore[arg-type]
            "quality": quality,
        }
        if tier.name == "fast":
            change["kv_type"] = "q8_0"
        tiers.append(tier.model_copy(update=change))
    base = family.base.model_copy(
        update={
            "name": "SmolLM2-135M-Instruct",
            "source": "org/SmolLM2-135M-Instruct@main",
            "licence": "apache-2.0",
            "dequantized_from": "Q4_1",
            "sha256": "ef" * 32,
        }
    )
    whole = family.model_copy(
        update={
            "tiers": tuple(tiers),
            "base": base,
            "dropped": {
                "q2_k": "too far from the base: it agrees on 41% of tokens, 60% are asked for",
                "q6_k": "best beats it: 0.98 against 1.10 s a call, KL 0.0051 against 0.0090",
                "iq4_xs": "4 MB is hardly less than mixed with 4 MB",
            },
        }
    )
    whole.save(folder)
    return Family.load(folder)


def tried_of(family: Family) -> tuple[Tried, ...]:
    """What the build of `rich_family` tried: its tiers, one that was beaten, one that was bad."""
    speeds = {
        "fast": (1450.0, 182.0),
        "quick": (1180.0, 121.0),
        "mixed": (760.0, 104.0),
        "best": (640.0, 78.0),
    }
    kept = [_tried(tier, *speeds[tier.name]) for tier in family.tiers]
    size = family.tiers[-1].bytes
    gone = [
        Tried(
            name="q6_k",
            bytes=size * 9 // 10,
            prefill_s=0.58,
            decode_s=0.52,
            seconds=1.10,
            kl_mean=0.0090,
            top1=0.961,
            layers=6,
            quantization="Q6_K",
            kept=False,
            reason=family.dropped["q6_k"],
        ),
        Tried(
            name="q2_k",
            bytes=size // 2,
            prefill_s=0.41,
            decode_s=0.33,
            seconds=0.74,
            kl_mean=1.62,
            top1=0.41,
            layers=6,
            quantization="Q2_K",
            kept=False,
            reason=family.dropped["q2_k"],
        ),
    ]
    return (*kept, *gone)


def _tried(tier: Tier, prefill: float, decode: float) -> Tried:
    divergence = tier.quality.divergence
    assert divergence is not None
    prefill_s, decode_s = PREFILL / prefill, DECODE / decode
    return Tried(
        name=tier.name,
        bytes=tier.bytes,
        prefill_s=prefill_s,
        decode_s=decode_s,
        seconds=prefill_s + decode_s,
        kl_mean=divergence.kl_mean,
        top1=divergence.top1_agreement.value,
        layers=tier.layers,
        quantization=tier.lineage.quantization,
        kept=True,
    )
