"""A cheaper variant of a tier: which one memory has room for, its file, and what it is worth.

``python -m tierwise.compression.variant ORDER`` is the process that `derive` starts, with a
`Wanted` in JSON. It runs on a machine that is short of memory, beside calls that are answered:

* at the lowest priority, and first to be killed where memory runs out;
* with little memory: the quantizer holds one tensor at a time, and divergence is measured on
  weights that stay in their files;
* speed is measured only while nobody else computes, and reckoned from the tier's own where not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path

import psutil

from tierwise.compression.activations import observe
from tierwise.compression.front import REFERENCE_PROMPT, REFERENCE_REPLY
from tierwise.compression.plan import LADDER, MIN_STEP, PROTECTED, choose_layers
from tierwise.compression.precision.header import read_header
from tierwise.compression.quantize import plan_quantization, quantize
from tierwise.evaluation.divergence import pair_divergence
from tierwise.evaluation.quick_speed import quick_speed
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.texts import chat_documents, take_tokens
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.cpu_load import SHORTEST_S, OthersLoad
from tierwise.runtime.errors import BuildError, OutOfMemoryError, TierwiseError
from tierwise.runtime.family import Family, Quality, Tier
from tierwise.runtime.files import sha256_of
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.llama import Model
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.profile import estimated_profile, load_profile, save_profile, utc_now
from tierwise.runtime.resources import probe
from tierwise.runtime.variants import FOLDER, Variant, VariantRecipe, VariantStore, Wanted
from tierwise.runtime.vocabulary import usable_file

MOST_PRUNED = 0.2
"""Of a tier's layers: without distillation, more leave nothing of a small model."""

HELD_OUT_TOKENS, FEWEST_TOKENS, LONGEST = 2048, 256, 256
"""That divergence is measured on: at most, and of large models; and of one document at most."""

READ_PARAMETERS = 2e12
"""Weights times tokens that are read at most."""

HELD_OUT_TASKS, HELD_OUT_SEED = 32, 2_000_000
OBSERVED = 8
"""Documents by which layers are chosen."""

SPARE_BYTES = 192 * 2**20
"""For what making and measuring take beside the largest tensor: logits, contexts, the process."""

BUSY = 0.25
"""Share of the cores from which on others compute too much for speed to be measured."""

WORK = ".work-"
"""Begins the names of folders of files that are being made."""

_STALE_S = 24 * 3600.0


def make_variant(wanted: Wanted) -> tuple[Variant | None, str]:
    """Makes the best variant that fits, or finds it made.

    Returns:
        It, or None and why there is none that is worth making.

    Raises:
        FamilyError, ModelError: The tier's file cannot be used.
        OutOfMemoryError: There is too little memory to make it in.
        DiskFullError: There is no room for it.
        BuildError: llama.cpp failed.
    """
    family = Family.load(wanted.folder, verify=False)
    source = usable_file(family, wanted.parent)
    store = VariantStore(family)
    for recipe in recipes(source, wanted):
        known = store.find(recipe.key(wanted.parent.sha256))
        if known is None:
            known = _made(source, recipe, wanted, store)
        if known.dropped:
            return None, known.dropped
        if _need(store.file(known.key), wanted) <= wanted.most_bytes:
            return known, ""
    return None, f"nothing that can be made of {wanted.parent.name} fits"


def recipes(source: Path, wanted: Wanted) -> Iterator[VariantRecipe]:
    """What should fit by its planned size, the best first: smaller types, then the smallest type
    with ever fewer layers."""
    need = predict_memory(source, wanted.context_tokens, kv_type=wanted.parent.kv_type)
    weights = need.weights_bytes + need.repacked_bytes
    left = wanted.most_bytes - (need.total_bytes - weights)
    sizes: dict[str, int] = {}
    for kind in LADDER:
        with suppress(BuildError):  # a type that llama.cpp cannot make of this model
            sizes[kind] = plan_quantization(source, kind).bytes
    above = source.stat().st_size
    for kind, size in sizes.items():
        if size <= above * (1 - MIN_STEP):  # fallbacks often eat the difference
            above = size
            if size <= left:
                yield VariantRecipe(quantization=kind)
    if not sizes:
        return
    kind, layers = min(sizes, key=sizes.__getitem__), wanted.parent.layers
    influence = None
    for count in range(1, min(int(layers * MOST_PRUNED), layers - 2 * PROTECTED - 1) + 1):
        gone = range(PROTECTED, PROTECTED + count)  # all are of one size
        size = plan_quantization(source, kind, pruned_layers=gone).bytes
        if size <= left + need.kv_bytes * count // layers:
            if influence is None:
                texts = _documents(source, wanted.parent)[:OBSERVED]
                influence = observe(source, texts, threads=1, mapped=True).block_influence
            pruned = choose_layers(influence, count)
            yield VariantRecipe(quantization=kind, pruned_layers=pruned)


def _made(source: Path, recipe: VariantRecipe, wanted: Wanted, store: VariantStore) -> Variant:
    """Makes the file and measures it; the record is saved last."""
    free = probe().available_bytes
    largest = max(prod(info.shape) for info in read_header(source).tensors.values())
    scratch = 8 * largest + SPARE_BYTES  # llama.cpp holds a tensor as f32, and its result
    if free < scratch:
        raise OutOfMemoryError(
            f"making a cheaper variant of {wanted.parent.name!r} takes {scratch / 1e6:,.0f} MB for "
            f"a while, and {free / 1e6:,.0f} MB are available; it is tried again later"
        )
    key = recipe.key(wanted.parent.sha256)
    work = _work_folder(store.folder)
    part = work / "variant.gguf"
    types = quantize(
        source, part, recipe.quantization, pruned_layers=recipe.pruned_layers, threads=1
    )
    documents = _tokens(source, wanted.parent)
    divergence = pair_divergence(source, part, documents, threads=1)
    tier = _described(part, recipe, wanted.parent, key, types)
    _measure_speed(part, tier, wanted)
    part.replace(store.file(key))
    variant = Variant(
        parent_sha256=wanted.parent.sha256, recipe=recipe, tier=tier, divergence=divergence
    )
    store.save(variant)
    shutil.rmtree(work, ignore_errors=True)
    return variant


def _described(
    file: Path, recipe: VariantRecipe, parent: Tier, key: str, types: dict[str, int]
) -> Tier:
    old = parent.lineage
    base = [n for n in range(parent.layers + len(old.pruned_layers)) if n not in old.pruned_layers]
    gone = tuple(sorted({*old.pruned_layers, *(base[layer] for layer in recipe.pruned_layers)}))
    with Model(file, no_alloc=True) as model:
        layers = f"d{model.layers}-" if recipe.pruned_layers else ""
        return Tier(
            name=f"{parent.name[:40]}-{layers}{recipe.quantization.lower()}-{key[:4]}",
            file=f"{FOLDER}/{key}.gguf",
            sha256=sha256_of(file),
            bytes=file.stat().st_size,
            parameters=model.parameters,
            layers=model.layers,
            context_tokens=parent.context_tokens,
            kv_bytes_per_token=model.kv_bytes_per_token,
            kv_type=parent.kv_type,
            demonstration_tokens=parent.demonstration_tokens,
            lineage=Lineage(
                origin="built",
                quantization=recipe.quantization,
                pruned_layers=gone,
                tensor_types=types,
                ffn_channels=old.ffn_channels,
                kv_heads=old.kv_heads,
                distillation=old.distillation,
            ),
            quality=Quality(kv_q8_0=parent.quality.kv_q8_0),  # heads and keys are the same
        )


def _measure_speed(file: Path, tier: Tier, wanted: Wanted) -> None:
    """Keeps a profile, if it can be measured now; a router reckons it from the parent's else."""
    others = OthersLoad()
    others()
    time.sleep(SHORTEST_S)
    share = others()
    if share is None or share > BUSY or _need(file, wanted) > probe().available_bytes:
        return
    speed = quick_speed(
        file,
        prompt_tokens=REFERENCE_PROMPT,
        reply_tokens=REFERENCE_REPLY,
        threads=wanted.threads,
    )
    known = load_profile(wanted.parent.sha256)
    measured = [(wanted.parent, known)] if known is not None else []
    profile = estimated_profile(tier, measured).model_copy(
        update={
            "threads": wanted.threads,
            "prefill_tokens_per_s": REFERENCE_PROMPT / speed.prefill_s,
            "decode_tokens_per_s": REFERENCE_REPLY / speed.decode_s,
            "measured_at": utc_now(),
            "runs": 1,
            "estimated": False,
        }
    )
    save_profile(profile)


def _documents(source: Path, parent: Tier) -> tuple[str, ...]:
    """Agent calls with their right answers, that no calibration has seen."""
    with Model(source, vocab_only=True) as model:
        template = ChatTemplate.of(model, demonstrates=not parent.taught_tools)
        return chat_documents(generate_tasks(HELD_OUT_TASKS, seed=HELD_OUT_SEED), template)


def _tokens(source: Path, parent: Tier) -> list[list[int]]:
    """The ends of documents, where the calls and answers are."""
    texts = _documents(source, parent)
    limit = min(HELD_OUT_TOKENS, max(FEWEST_TOKENS, int(READ_PARAMETERS / parent.parameters)))
    with Model(source, vocab_only=True) as model:
        longest = min(LONGEST, model.context_tokens)
        return take_tokens([model.tokenize(text)[-longest:] for text in texts], limit)


def _need(file: Path, wanted: Wanted) -> int:
    return predict_memory(file, wanted.context_tokens, kv_type=wanted.parent.kv_type).total_bytes


def _work_folder(folder: Path) -> Path:
    """A folder of this process's own; what others left of theirs long ago is removed."""
    folder.mkdir(exist_ok=True)
    for left in folder.glob(f"{WORK}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
    work = folder / f"{WORK}{os.getpid()}"
    work.mkdir(exist_ok=True)
    return work


def _give_way() -> None:
    """Lets everything else go first, and be killed later."""
    own = psutil.Process()
    with suppress(psutil.Error, OSError):
        if sys.platform == "win32":
            own.nice(psutil.IDLE_PRIORITY_CLASS)
        else:
            own.nice(19)
        if sys.platform == "linux":
            own.ionice(psutil.IOPRIO_CLASS_IDLE)
    with suppress(OSError):  # Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with(parent: int) -> None:
    """Ends this process once the one that started it is gone, whatever it does then."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Makes what is ordered and prints one JSON object: a key, or why there is none."""
    parser = argparse.ArgumentParser(prog="tierwise.compression.variant")
    parser.add_argument("order", help="a Wanted in JSON")
    wanted = Wanted.model_validate_json(parser.parse_args().order)
    _give_way()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        variant, why = make_variant(wanted)
    except TierwiseError as error:
        print(json.dumps({"error": type(error).__name__, "reason": str(error)}), flush=True)
        return
    print(json.dumps({"key": variant.key if variant else None, "reason": why}), flush=True)


if __name__ == "__main__":
    main()
