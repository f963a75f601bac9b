"""Model cards: a ``<tier>.md`` beside each tier, ready to publish with its file.

Licence, base model, how the one came from the other, what was measured on what, how to run it,
and what not to expect.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tierwise.compression.front import REFERENCE_PROMPT, REFERENCE_REPLY
from tierwise.compression.report.card_front import front_matter, is_pruned
from tierwise.compression.report.recipes import (
    distillation_facts,
    layers_text,
    learning_facts,
    parameters_text,
    quantization_facts,
)
from tierwise.compression.report.text import (
    interval_text,
    nats_text,
    rate_text,
    seconds_text,
    size_text,
)
from tierwise.compression.report.write import base_note, machine_caveat
from tierwise.runtime.family import Base, Estimate, Family, Tier
from tierwise.runtime.files import write_atomically
from tierwise.runtime.profile import Profile

# What Markdown reads anywhere in a line; underscores within a word mean nothing to it.
_SPECIAL = re.compile(r"([\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w))")


def write_cards(family: Family, profiles: Mapping[str, Profile]) -> tuple[Path, ...]:
    """Writes a card for every tier into the family's folder.

    Args:
        family: As loaded or saved.
        profiles: By tier name, as from `family_profiles`; a tier without one has no speed.

    Returns:
        The cards' paths, in the order of the tiers.

    Raises:
        DiskFullError: There is no room for them.
    """
    paths = []
    for tier in family.tiers:
        path = family.folder / f"{tier.name}.md"
        write_atomically(path, card_of(family, tier, profiles.get(tier.name)))
        paths.append(path)
    return tuple(paths)


def card_of(family: Family, tier: Tier, profile: Profile | None) -> str:
    """One tier's card: YAML front matter and Markdown."""
    front = yaml.safe_dump(
        front_matter(family.base, tier), sort_keys=False, allow_unicode=True, width=math.inf
    )
    sections = [
        _opening(family.base, tier),
        _lineage(family.base, tier),
        _quality(family.base, tier),
        _speed(tier, profile),
        _usage(tier),
        _limits(family.base, tier),
        f"Made {family.created} by Tierwise {family.tierwise}.",
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def plain(text: str) -> str:
    """Text of others as one line of Markdown that means nothing but itself."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


# --- sections -------------------------------------------------------------------------------


def _opening(base: Base, tier: Tier) -> str:
    lineage = tier.lineage
    if lineage.origin == "adopted":
        how = "a tier that was made elsewhere and adopted"
    else:
        steps = ["pruned"] if is_pruned(lineage) else []
        steps += ["distilled"] if lineage.distillation is not None else []
        if tier.sha256 == base.sha256:
            steps.append("kept as it was given")
        else:
            steps.append(f"quantized to {plain(lineage.quantization)}")
        how = ", ".join(steps[:-1]) + (" and " if steps[:-1] else "") + steps[-1]
    title = f"# {plain(base.name)} · {plain(tier.name)}"
    subject = plain(tier.name if lineage.origin == "adopted" else base.name)
    return (
        f"{title}\n\n{subject}, {how}: {size_text(tier.bytes)}, "
        f"{tier.layers} layers, {parameters_text(tier, base)} parameters. One tier of a Tierwise "
        "family; the figures below say what they were measured on."
    )


def _lineage(base: Base, tier: Tier) -> str:
    lineage = tier.lineage
    if lineage.origin == "adopted":
        rows = [("Layers", str(tier.layers)), *learning_facts(lineage)]
        rows += quantization_facts(lineage)
        return (
            f"## Lineage\n\nMade elsewhere and adopted beside tiers of {plain(base.name)}, whose "
            "vocabulary it shares. Its own base, licence and training are not known here: ask "
            "where it came from before you publish it.\n\n" + _table(("what", "value"), rows)
        )
    rows = [
        ("Base", f"{base.name} ({base.architecture}, sha256 {base.sha256[:12]}…)"),
        ("Licence of the base", base.licence or "unknown: ask its author before you publish this"),
    ]
    if base.dequantized_from is not None:
        rows.append(("Base precision", f"dequantized from {base.dequantized_from}"))
    rows.append(("Layers", layers_text(tier, base)))
    if lineage.ffn_channels is not None:
        rows.append(("MLP width", f"{lineage.ffn_channels:,} channels a layer"))
    if lineage.kv_heads is not None:
        rows.append(("Key-value heads", f"{lineage.kv_heads} a layer"))
    if lineage.distillation is not None:
        facts = distillation_facts(lineage.distillation)
        rows += [(f"Distillation: {label}", value) for label, value in facts]
        if tier.taught_tools:
            rows.append(("Tools", "called without a demonstration of how in the prompt"))
    rows += learning_facts(lineage)
    rows += quantization_facts(lineage)
    if tier.kv_type != "f16":
        rows.append(("KV cache", f"{tier.kv_type} (part of the tier)"))
    text = "## Lineage\n\n" + _table(("step", "what"), rows)
    if base.dequantized_from is not None:
        text += (
            f"\n\nThe base was given as a {plain(base.dequantized_from)} file. This tier was made "
            "from its dequantized weights, not from the original ones: what that type had lost is "
            "lost here too."
        )
    return text


def _quality(base: Base, tier: Tier) -> str:
    quality = tier.quality
    rows: list[tuple[str, str, str]] = []
    if (found := quality.divergence) is not None:
        tokens = f"{found.tokens:,} tokens"
        rows += [
            ("KL(base ‖ tier), mean", f"{nats_text(found.kl_mean)} nats", tokens),
            ("KL(base ‖ tier), 99.9 %", f"{nats_text(found.kl_p999)} nats", tokens),
            (
                "Top-1 agreement with the base (95 % interval)",
                interval_text(found.top1_agreement, 1),
                f"{found.top1_agreement.n:,} tokens",
            ),
            (
                "Perplexity",
                f"{rate_text(found.perplexity)} (base {rate_text(found.base_perplexity)})",
                tokens,
            ),
        ]
    if (cache := quality.kv_q8_0) is not None:
        told = f"{cache.kl_mean:.5f} nats"
        rows.append(("KL that a q8_0 KV cache adds", told, f"{cache.tokens:,} tokens"))
    if (tools := quality.tools) is not None:
        rows.append(_success("all", tools.overall, tools.suite))
        rows += [_success(name, share, tools.suite) for name, share in tools.by_grade.items()]
        rows += [_success(name, share, tools.suite) for name, share in tools.by_kind.items()]
    if not rows:
        return "## Quality\n\nNot measured."
    note = f"\n\n{plain(base_note(base))}" if quality.divergence is not None else ""
    return "## Quality\n\n" + _table(("measure", "value", "n"), rows) + note


def _success(name: str, share: Estimate, suite: str) -> tuple[str, str, str]:
    what = f"Tasks solved, {name.replace('_', ' ')} ({suite}; 95 % interval)"
    return what, interval_text(share), str(share.n)


def _speed(tier: Tier, profile: Profile | None) -> str:
    if profile is None:
        return "## Speed\n\nNot measured."
    call = f"Call of {REFERENCE_PROMPT} + {REFERENCE_REPLY} tokens"
    seconds = profile.seconds(REFERENCE_PROMPT, REFERENCE_REPLY, cold=False)
    rows = [
        ("Prefill", f"{rate_text(profile.prefill_tokens_per_s)} tokens/s"),
        ("Decode", f"{rate_text(profile.decode_tokens_per_s)} tokens/s"),
        (call, f"{seconds_text(seconds)} s"),
        ("Load", f"{profile.load_s:.2f} s"),
        (f"Resident with {profile.context_tokens:,} tokens", size_text(profile.resident_bytes)),
    ]
    if (cache := profile.kv_q8_0) is not None:
        told = f"prefill × {cache.prefill:.2f}, decode × {cache.decode:.2f}"
        rows.append(("With a q8_0 KV cache", told))
    note = machine_caveat({tier.name: profile})
    return "## Speed\n\n" + _table(("measure", "this machine"), rows) + f"\n\n{plain(note)}"


def _usage(tier: Tier) -> str:
    cache = " -fa on -ctk q8_0 -ctv q8_0" if tier.kv_type == "q8_0" else ""
    return (
        "## How to run it\n\n"
        "With Tierwise, in the family's folder, by itself or as one of its tiers:\n\n"
        f"```\ntierwise run . --tier {tier.name}\n```\n\n"
        "```python\nfrom tierwise import ChatTierwise\n\n"
        f'model = ChatTierwise(family=".", model="{tier.name}")\n```\n\n'
        "With llama.cpp:\n\n"
        f"```\nllama-cli -m {_quoted(tier.file)} --jinja{cache}\n"
        f"llama-server -m {_quoted(tier.file)} --jinja{cache} -c {tier.context_tokens}\n```"
    )


def _limits(base: Base, tier: Tier) -> str:
    origin = "the model it was made from" if tier.lineage.origin == "adopted" else plain(base.name)
    lines = [
        f"- What is said of {origin}, of its limits and of its biases, applies here too. "
        "Compression adds errors of its own and removes none; read the base's card.",
        "- Tierwise measures on short agent tasks in English. Other languages, long contexts and "
        "knowledge are not measured, and are what compression harms first.",
    ]
    if tier.quality.tools is not None and tier.quality.tools.overall.n < 200:
        lines.append(
            f"- {tier.quality.tools.overall.n} tasks are few: tiers whose intervals overlap "
            "cannot be told apart by them."
        )
    if tier.lineage.distillation is not None:
        lines.append(
            "- It was trained on the base's own answers, so it repeats the base's mistakes with "
            "the same confidence."
        )
    if tier.lineage.learning is not None:
        lines.append(
            "- It was taught replies to logged calls of one user, which larger models gave and "
            "nobody read one by one: what was wrong in them it may have learned too, and what was "
            "private in them it may tell. Think of that before you publish it."
        )
    if is_pruned(tier.lineage) and tier.lineage.distillation is None:
        lines.append("- It was pruned and not trained afterwards: expect it to fail more often.")
    return "## Limits and bias\n\n" + "\n".join(lines)


def _table(heads: tuple[str, ...], rows: Any) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _quoted(file: str) -> str:
    """For a shell, on one line of a code block."""
    return shlex.quote(" ".join(file.split()).replace("`", ""))
