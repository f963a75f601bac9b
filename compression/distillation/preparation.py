"""What comes before training: the teacher's signal, and a student that lacks some layers.

Each of the two works on a folder, where ``task.json`` says what to do; see `worker`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tierwise.compression.distillation.capture import capture
from tierwise.compression.distillation.conversations import Document
from tierwise.compression.distillation.documents import split_documents
from tierwise.compression.distillation.job import online
from tierwise.compression.distillation.lessons import make_lessons, pack, unpack
from tierwise.compression.distillation.tasks import (
    DOCUMENTS,
    HELD_OUT,
    LESSONS,
    RESULT,
    TASK,
    CaptureTask,
    Pruned,
    PruneTask,
)
from tierwise.compression.distillation.teacher import Teacher, load_model
from tierwise.compression.distillation.tensor_files import load_tensors, save_tensors
from tierwise.compression.pruning.decoder import decoder_of
from tierwise.compression.pruning.depth import prune_layers, removal_order
from tierwise.compression.pruning.width import possible_channels, prune_width
from tierwise.compression.reporting import Progress
from tierwise.runtime.errors import BuildError, ConfigError
from tierwise.runtime.files import write_atomically

HELD_OUT_SHARE = 0.02
SEARCH_TOKENS = 3_072
"""Of held-out documents, on which layers are chosen."""

REFIT_TOKENS = 12_288
"""Of lessons, on which what stays of a narrowed layer is refitted. SmolLM2-135M with 1,152 of
1,536 channels: held-out KL 0.091 nats after 13,900 tokens, 0.108 after a quarter of them."""


# --- the teacher's signal -------------------------------------------------------------------


def save_documents(file: Path, documents: list[Document]) -> None:
    """Documents as tensors, for `capture_lessons`.

    Raises:
        DiskFullError: There is no room.
    """
    sources = sorted({document.source for document in documents})
    groups = sorted({document.group for document in documents})
    save_tensors(
        file,
        {
            "lengths": torch.tensor([len(document) for document in documents]),
            "tokens": torch.cat([torch.from_numpy(one.tokens.copy()) for one in documents]),
            "answers": torch.cat([torch.from_numpy(one.answer.copy()) for one in documents]),
            "given": torch.cat([torch.from_numpy(one.given.copy()) for one in documents]),
            "sources": torch.tensor([sources.index(one.source) for one in documents]),
            "groups": torch.tensor([groups.index(one.group) for one in documents]),
            "shown": torch.tensor([one.shown for one in documents]),
        },
        {"sources": "\n".join(sources)},
    )


def load_documents(file: Path) -> list[Document] | None:
    """What `save_documents` wrote (groups as numbers); None where it is not there or damaged."""
    known = load_tensors(file)
    if known is None:
        return None
    arrays, header = known
    sources = header["sources"].split("\n")
    lengths = arrays["lengths"].tolist()
    rows = zip(
        arrays["tokens"].split(lengths),
        arrays["answers"].split(lengths),
        arrays["given"].split(lengths),
        arrays["sources"].tolist(),
        arrays["groups"].tolist(),
        arrays["shown"].tolist(),
        strict=True,
    )
    return [
        Document(
            tokens.numpy(),
            answers.numpy(),
            given.numpy(),
            sources[source],
            str(group),
            (start, stop),
        )
        for tokens, answers, given, source, group, (start, stop) in rows
    ]


def capture_lessons(
    folder: Path,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> None:
    """Documents of the folder become lessons with the teacher's signal, and held-out ones.

    Raises:
        BuildError: The documents are damaged or too few.
        DiskFullError: There is no room; what was captured is kept.
    """
    task = CaptureTask.model_validate_json((folder / TASK).read_text(encoding="utf-8"))
    documents = load_documents(folder / DOCUMENTS)
    if documents is None:
        (folder / DOCUMENTS).unlink(missing_ok=True)
        raise BuildError(
            f"{str(folder / DOCUMENTS)!r} is damaged. Run the same command again: it is made anew."
        )
    train, held_out = split_documents(documents, HELD_OUT_SHARE, seed=task.config.seed)
    if not held_out:
        train, held_out = train[:-1], train[-1:]
    if not train:
        raise BuildError("there are too few documents to learn from; raise distill.tokens")
    config = task.config
    teacher: list[Teacher] = []

    def load() -> Teacher:
        if not teacher:
            teacher.append(Teacher.load(task.teacher))
        return teacher[0]

    for name, part in ((HELD_OUT, held_out), (LESSONS, train)):
        if name == LESSONS and online(config):
            lessons = make_lessons(
                part,
                prompt_share=config.prompt_share,
                prompt_weight=config.prompt_weight,
                shown=config.shown,
                seed=config.seed,
            )
        else:
            lessons = capture(
                load,
                part,
                folder / "signal",
                key=task.key,
                prompt_share=config.prompt_share,
                prompt_weight=config.prompt_weight,
                temperature=config.temperature,
                shown=config.shown,
                seed=config.seed,
                progress=progress,
                note=note,
            )
        save_tensors(folder / name, pack(lessons), {})
    shutil.rmtree(folder / "signal", ignore_errors=True)


# --- the student ----------------------------------------------------------------------------


def prune_student(
    folder: Path,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> None:
    """Takes layers (and channels, and KV groups) out of the folder's parent.

    Raises:
        ConfigError: So many layers cannot go.
        UnsupportedModelError: A shape that cannot be pruned.
    """
    del note
    task = PruneTask.model_validate_json((folder / TASK).read_text(encoding="utf-8"))
    model = load_model(task.parent, torch.float32)
    batches = _batches(task.held_out, SEARCH_TOKENS)
    recipe, parents = task.recipe, task.parents
    wanted = recipe.layers_of(task.base_layers)
    removals: list[tuple[int, float]] = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gone = _gone(model, task, wanted, batches, removals, progress)
        if gone:
            model = prune_layers(model, [parents.index(layer) for layer in gone])
    if recipe.ffn < 1 or recipe.kv_groups is not None:
        decoder = decoder_of(model)
        share = min(1.0, recipe.ffn * task.base_ffn / decoder.ffn)
        channels = possible_channels(decoder, share) if recipe.ffn < 1 else None
        batches = _batches(task.lessons, REFIT_TOKENS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model = prune_width(
                model, batches, channels=channels, kv_heads=recipe.kv_groups, progress=progress
            )
    _save(model, task)
    # What it has, not what the recipe says: some may have gone with the parent's already.
    channels, groups = model.config.intermediate_size, model.config.num_key_value_heads
    result = Pruned(
        parents=tuple(layer for layer in parents if layer not in gone),
        ffn_channels=channels if channels < task.base_ffn else None,
        kv_heads=groups if groups < task.base_kv_heads else None,
        removals=tuple(removals),
    )
    write_atomically(folder / RESULT, result.model_dump_json())


def _gone(
    model: Any,
    task: PruneTask,
    wanted: int,
    batches: list[torch.Tensor],
    removals: list[tuple[int, float]],
    progress: Progress | None,
) -> set[int]:
    """The base's layers that must go from the parent."""
    if task.recipe.prune is not None:
        return set(task.recipe.prune) & set(task.parents)
    count = len(task.parents) - wanted
    if count < 0:
        raise ConfigError(
            f"a student of {wanted} layers cannot come from one of {len(task.parents)}: list "
            "students from the largest to the smallest"
        )
    if count == 0:
        return set()
    order = removal_order(model, batches, count, protected=task.protected, progress=progress)
    removals += [(task.parents[one.layer], one.kl) for one in order]
    return {layer for layer, _ in removals}


def _batches(file: Path, tokens: int) -> list[torch.Tensor]:
    """What the teacher read, one by one, shape (1, length), of so many tokens together."""
    known = load_tensors(file)
    if known is None:
        raise BuildError(f"{str(file)!r} is damaged. Run the same command again: it is made anew.")
    out, held = [], 0
    for lesson in unpack(known[0]):
        if held >= tokens:
            break
        out.append(lesson.teacher_tokens[None])
        held += len(lesson.teacher_tokens)
    return out


def _save(model: Any, task: PruneTask) -> None:
    part = task.target.with_name(task.target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (task.parent / name).is_file():
            shutil.copyfile(task.parent / name, part / name)
    shutil.rmtree(task.target, ignore_errors=True)
    part.rename(task.target)
