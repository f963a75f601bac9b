"""``adopt_tier``: a GGUF file that was made elsewhere becomes a tier of a family.

It may be another quantization, a fine-tune, or a larger sibling: all that tiers must share is
the vocabulary, because one conversation goes from tier to tier.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tierwise.compression.base_record import chat_template_of, file_type_of, tokenizer_hash
from tierwise.compression.measure import call_seconds, measure_drafts, profile_of, success_of
from tierwise.compression.report.cards import write_cards
from tierwise.compression.reporting import Reporter, Silent
from tierwise.compression.source import check_gguf
from tierwise.evaluation.tasks import menu_of
from tierwise.evaluation.texts import demonstration_tokens
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import ConfigError, ModelNotFoundError, UnsupportedModelError
from tierwise.runtime.family import Family, Quality, Tier
from tierwise.runtime.files import FileHashes, link_or_copy
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.llama import Model
from tierwise.runtime.profile import family_profiles
from tierwise.runtime.resources import probe

DEFAULT_TASKS, DEFAULT_SEED = 48, 0
"""Of the suite, where no other tier was measured on it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TYPE_COUNT = re.compile(r"- type\s+(\w+):\s+(\d+) tensors")


def adopt_tier(
    folder: str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    name: str | None = None,
    measure: bool = True,
    reporter: Reporter | None = None,
) -> Family:
    """Adds a GGUF file to a family. Until all is done, and if anything fails, nothing changes.

    Its divergence stays unknown: the base may be gone, and need not be the file's own.

    Args:
        folder: Of the family.
        file: Used in place if it is in that folder; else linked (or copied) into it.
        name: Of the tier; made from the file's name if not given.
        measure: Its speed on this machine, and its success on the tasks of the other tiers.
        reporter: Hears about stages.

    Returns:
        The family as saved, the new tier in its place from fastest to slowest.

    Raises:
        FamilyError: There is no usable family in the folder.
        ModelNotFoundError, DamagedModelError: The file is missing or broken.
        UnsupportedModelError: It has another vocabulary than the base, or writes tool calls in
            another form than the other tiers.
        ConfigError: The name is taken or not allowed, or the file is a tier already.
        DiskFullError: There is no room for the copy.
    """
    family = Family.load(folder)
    reporter = reporter or Silent()
    path = Path(file).expanduser()
    name = _checked_name(family, name, path)
    with reporter.stage(f"Reading {path.name}"):
        tier = _describe(family, name, path, reporter)
    if measure:
        tier = _measured(family, tier, path, reporter)
    with _placed(path, family.folder / tier.file):
        family = Family.load(folder)  # what was changed while it was measured stays
        _check_free(family, name)
        now = _describe(family, name, path, Silent())
        tier = now.model_copy(update={"quality": tier.quality})
        tiers = list(family.tiers)
        tiers.insert(rank(tiers, tier), tier)
        dropped = {key: why for key, why in family.dropped.items() if key != name}
        adopted = family.model_copy(update={"tiers": tuple(tiers), "dropped": dropped})
        adopted.save(family.folder)
    write_cards(adopted, family_profiles(adopted))
    return adopted


def _checked_name(family: Family, name: str | None, path: Path) -> str:
    if name is None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-")[:64] or "adopted"
    elif not _NAME.fullmatch(name):
        raise ConfigError(
            f"a tier cannot be called {name!r}: use up to 64 letters, digits, dots, dashes and "
            "underscores, a letter or digit first"
        )
    _check_free(family, name)
    return name


def _check_free(family: Family, name: str) -> None:
    if name in {*(one.name for one in family.tiers), *(one.name for one in family.remotes)}:
        raise ConfigError(f"the family has a tier {name!r} already; give this one another name")


def _describe(family: Family, name: str, path: Path, reporter: Reporter) -> Tier:
    """The tier as the file itself tells it."""
    if not path.is_file():
        raise ModelNotFoundError(f"there is no GGUF file {str(path)!r} to adopt")
    check_gguf(path)
    with Model(path, no_alloc=True) as model:
        _check_vocabulary(family, model, path)
        _check_template(family, model, path, reporter)
        tier = Tier(
            name=name,
            file=_file_in(family.folder, name, path),
            sha256=FileHashes.shared().sha256(path),
            bytes=path.stat().st_size,
            parameters=model.parameters,
            layers=model.layers,
            context_tokens=model.context_tokens,
            kv_bytes_per_token=model.kv_bytes_per_token,
            demonstration_tokens=demonstration_tokens(model),
            lineage=Lineage(
                origin="adopted",
                quantization=file_type_of(model),
                pruned_layers=(),
                tensor_types={
                    kind: int(count) for kind, count in _TYPE_COUNT.findall("".join(model.load_log))
                },
            ),
        )
    for other in family.tiers:
        if other.sha256 == tier.sha256:
            raise ConfigError(f"{str(path)!r} is the family's tier {other.name!r} already")
    return tier


def _check_vocabulary(family: Family, model: Model, path: Path) -> None:
    if model.vocab_size != family.base.vocab_size:
        raise UnsupportedModelError(
            f"{str(path)!r} has a vocabulary of {model.vocab_size:,} tokens, the family's base "
            f"{family.base.name!r} has {family.base.vocab_size:,}; tiers must share one. Adopt a "
            "model that was made from the same base."
        )
    if tokenizer_hash(model) != family.base.tokenizer_sha256:
        raise UnsupportedModelError(
            f"{str(path)!r} has another tokenizer than the family's base {family.base.name!r}: as "
            "many tokens, but not the same ones; tiers must share them. Adopt a model that was "
            "made from the same base."
        )


def _check_template(family: Family, model: Model, path: Path, reporter: Reporter) -> None:
    """All tiers are given one prompt, written by the template of the first."""
    own = chat_template_of(model, str(path))
    first = family.tiers[0]
    with Model(family.path(first), vocab_only=True) as other:
        if other.chat_template == model.chat_template:
            return
        if ChatTemplate.of(other).tool_format is not own.tool_format:
            raise UnsupportedModelError(
                f"the chat template of {str(path)!r} writes tool calls in another form than that "
                f"of tier {first.name!r}; all tiers of a family get the same prompt. Adopt a "
                "model with the base's template."
            )
    reporter.note(
        f"{path.name} has a chat template of its own; all tiers of a family get the same prompt, "
        "written by the first tier's template"
    )


def _file_in(folder: Path, name: str, path: Path) -> str:
    """The tier's place, relative to the family's folder."""
    own, root = path.resolve(), folder.resolve()
    # What is in a hidden folder (such as .build) is not there to stay.
    if own.is_relative_to(root) and not own.relative_to(root).parts[0].startswith("."):
        return own.relative_to(root).as_posix()
    target = folder / f"{name}.gguf"
    if target.is_symlink() or (target.exists() and not _same_content(path, target)):
        raise ConfigError(f"{str(target)!r} is there already; give the tier another name")
    return target.name


def _same_content(a: Path, b: Path) -> bool:
    return FileHashes.shared().sha256(a) == FileHashes.shared().sha256(b)


def _measured(family: Family, tier: Tier, path: Path, reporter: Reporter) -> Tier:
    """The tier with its success; its profile is kept with the machine's others."""
    known = [other.quality.tools for other in family.tiers if other.quality.tools is not None]
    threads, cheapest = probe().threads, family.tiers[0]
    profile_of(tier.name, path, threads=threads, reporter=reporter)
    measure_drafts({cheapest.name: family.path(cheapest), tier.name: path}, reporter=reporter)
    success = success_of(
        tier.name,
        path,
        tasks=known[0].overall.n if known else DEFAULT_TASKS,
        seed=known[0].seed if known else DEFAULT_SEED,
        menu=menu_of(known[0].suite) if known else 1,
        context_tokens=tier.context_tokens,
        threads=threads,
        reporter=reporter,
    )
    quality = Quality(tools=success.result, samples=success.samples)
    return tier.model_copy(update={"quality": quality})


@contextmanager
def _placed(path: Path, target: Path) -> Iterator[None]:
    """The file is in its place; if the block fails, it goes again where it was not before."""
    if target.exists():
        yield
        return
    try:
        link_or_copy(path, target)
        yield
    except BaseException:
        for stray in (target, target.with_name(target.name + ".part")):
            stray.unlink(missing_ok=True)
        raise


def rank(tiers: Sequence[Tier], tier: Tier) -> int:
    """Before the first tier that takes longer; than which it is smaller, if speed is unknown."""
    seconds: dict[str, float] = {}
    for member in (*tiers, tier):
        if (found := call_seconds(member)) is not None:
            seconds[member.name] = found

    def cost(member: Tier) -> float:
        known = len(seconds) > len(tiers)
        return seconds[member.name] if known else member.bytes

    costs = [cost(other) for other in tiers]
    return next((i for i, other in enumerate(costs) if other > cost(tier)), len(costs))
