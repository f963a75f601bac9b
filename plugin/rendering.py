"""What the command line shows: progress bars, the family table, and the same as JSON."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tierwise.compression.front import REFERENCE_PROMPT, REFERENCE_REPLY
from tierwise.compression.report.text import size_text
from tierwise.compression.reporting import Progress
from tierwise.plugin.lineage_rows import lineage_json, lineage_rows
from tierwise.plugin.signs import sign
from tierwise.runtime.errors import TierwiseError
from tierwise.runtime.family import MANIFEST, Divergence, Estimate, Family, Tier
from tierwise.runtime.profile import Profile

if TYPE_CHECKING:
    from tierwise.plugin.doctor import Status

PIPED_WIDTH = 200
"""Characters a line where nobody says how wide the output is: tables must not be cut there."""

UNKNOWN = "–"


def make_console(*, stderr: bool = False) -> Console:
    """A console for stdout or stderr that is wide enough for tables when it is no terminal."""
    console = Console(stderr=stderr, highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, highlight=False, width=PIPED_WIDTH)


def say(console: Console, text: str, style: str = "") -> None:
    """Prints text as it is: no markup, and lines break where they like."""
    console.print(Text(text, style=style), soft_wrap=True)


class RichReporter:
    """A `Reporter` that draws one bar per stage and leaves a line behind when it ends.

    Where the console is no terminal it prints only those lines.

    Args:
        console: Standard error where not given, so that output can be piped.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console(stderr=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        """A bar with elapsed time, then ``✓ title 3.2 s`` (or ✗ if the stage failed)."""
        began = time.perf_counter()
        try:
            if self.console.is_terminal:
                with self._bar(title) as update:
                    yield update
            else:
                yield lambda _text, _share: None
        except BaseException:
            self._ended("fail", title, began)
            raise
        self._ended("ok", title, began)

    def note(self, text: str) -> None:
        say(self.console, text, "dim")

    @contextmanager
    def _bar(self, title: str) -> Iterator[Progress]:
        columns = (
            bars.TextColumn("  {task.description}", markup=False),
            bars.BarColumn(bar_width=24),
            bars.TextColumn("{task.fields[said]}", style="dim", markup=False),
            bars.TimeElapsedColumn(),
        )
        with bars.Progress(*columns, console=self.console, transient=True) as shown:
            # Without a total the bar pulses, until the stage says how far it is.
            task = shown.add_task(title, total=None, said="")

            def update(text: str, share: float) -> None:
                shown.update(task, completed=share, total=1.0, said=text)

            yield update

    def _ended(self, status: Status, title: str, began: float) -> None:
        took = f"{time.perf_counter() - began:.1f} s"
        line = Text.assemble(sign(self.console, status), f" {title} ", (took, "dim"))
        self.console.print(line, soft_wrap=True)


# --- the family table -----------------------------------------------------------------------


def family_table(
    family: Family, profiles: Mapping[str, Profile], tiers: Sequence[Tier] | None = None
) -> Table:
    """One column per tier, cheapest first; one row per figure, its unit in the label.

    Args:
        profiles: By tier name, as from `family_profiles`. Estimated figures are marked "~".
        tiers: Those to show; all if not given.
    """
    tiers = family.tiers if tiers is None else tiers
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tier", style="dim", no_wrap=True)
    for tier in tiers:
        table.add_column(Text(tier.name), justify="right", no_wrap=True)
    for label, cell in _tier_rows(family):
        table.add_row(label, *(cell(tier) for tier in tiers))
    if all(tier.name in profiles for tier in tiers):
        table.add_section()
        for label, measured in _MACHINE_ROWS:
            cells = (_on_machine(measured, profiles[tier.name]) for tier in tiers)
            table.add_row(label, *cells)
    return table


def family_tables(
    console: Console, family: Family, profiles: Mapping[str, Profile]
) -> Sequence[Table]:
    """`family_table` in as few parts, one below the other, as the console is wide enough for."""
    endless = console.options.update(width=10_000)
    for columns in range(len(family.tiers), 0, -1):
        parts = range(0, len(family.tiers), columns)
        tables = [family_table(family, profiles, family.tiers[i : i + columns]) for i in parts]
        widths = [console.measure(table, options=endless).maximum for table in tables]
        if max(widths) <= console.width:
            break
    return tables


def _tier_rows(family: Family) -> Sequence[tuple[str, Callable[[Tier], str]]]:
    return (
        ("file", lambda tier: size_text(tier.bytes)),
        ("layers", lambda tier: _layers(tier, family.base.layers)),
        ("quantization", lambda tier: tier.lineage.quantization),
        *lineage_rows(family),
        ("KL mean, nats", lambda tier: _figure(tier, lambda d: f"{d.kl_mean:.4f}")),
        ("KL 99.9 %, nats", lambda tier: _figure(tier, lambda d: f"{d.kl_p999:.3f}")),
        ("top-1 agreement", lambda tier: _figure(tier, lambda d: f"{d.top1_agreement.value:.1%}")),
        (f"perplexity{_base_perplexity(family)}", lambda tier: _figure(tier, _perplexity)),
        ("KL of a q8_0 KV cache, nats", _kv_divergence),
        ("task success (95 % interval)", _success),
    )


_MACHINE_ROWS: Sequence[tuple[str, Callable[[Profile], str]]] = (
    ("prefill, tokens/s", lambda profile: _rate(profile.prefill_tokens_per_s)),
    ("decode, tokens/s", lambda profile: _rate(profile.decode_tokens_per_s)),
    ("load, s", lambda profile: f"{profile.load_s:.2f}"),
    ("resident, MB", lambda profile: f"{profile.resident_bytes / 1e6:,.0f}"),
    (
        f"agent call ({REFERENCE_PROMPT} + {REFERENCE_REPLY} tokens), s",
        lambda profile: f"{reference_seconds(profile):.2f}",
    ),
)


def _on_machine(cell: Callable[[Profile], str], profile: Profile) -> str:
    return f"{'~' if profile.estimated else ''}{cell(profile)}"


def _figure(tier: Tier, text: Callable[[Divergence], str]) -> str:
    divergence = tier.quality.divergence
    return UNKNOWN if divergence is None else text(divergence)


def _kv_divergence(tier: Tier) -> str:
    divergence = tier.quality.kv_q8_0
    return UNKNOWN if divergence is None else f"{divergence.kl_mean:.5f}"


def _layers(tier: Tier, base_layers: int) -> str:
    return str(tier.layers) if tier.layers == base_layers else f"{tier.layers} of {base_layers}"


def _perplexity(divergence: Divergence) -> str:
    return _rate(divergence.perplexity)


def _base_perplexity(family: Family) -> str:
    for tier in family.tiers:
        if tier.quality.divergence is not None:
            return f" (base {_rate(tier.quality.divergence.base_perplexity)})"
    return ""


def _success(tier: Tier) -> str:
    if tier.quality.tools is None:
        return UNKNOWN
    share = tier.quality.tools.overall
    return f"{share.value:.0%} ({share.low:.0%}–{share.high:.0%})"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def reference_seconds(profile: Profile) -> float:
    """Seconds of the agent call by which tiers are compared, the tier being loaded."""
    return profile.seconds(REFERENCE_PROMPT, REFERENCE_REPLY, cold=False)


def print_family(console: Console, family: Family, profiles: Mapping[str, Profile]) -> None:
    """Where it is, where it comes from, the table, and what was dropped."""
    base = family.base
    total = size_text(sum(tier.bytes for tier in family.tiers))
    count = len(family.tiers)
    heading = f"{base.name}: {count} {'tier' if count == 1 else 'tiers'}, {total}"
    say(console, f"{heading}, in {family.folder}", "bold")
    facts = [base.architecture, f"{base.parameters / 1e6:,.1f} M parameters"]
    facts += [f"{base.layers} layers", f"{base.context_tokens:,} tokens of context"]
    facts.append(f"licence {base.licence or 'unknown'}")
    if base.dequantized_from is not None:
        facts.append(f"dequantized from {base.dequantized_from}")
    say(console, f"base {base.source} ({', '.join(facts)})")
    say(console, f"made {family.created} by Tierwise {family.tierwise}\n", "dim")
    for number, table in enumerate(family_tables(console, family, profiles)):
        if number:
            console.print()
        console.print(table)
    if any(profile.estimated for profile in profiles.values()):
        say(console, "~ estimated: not measured on this machine", "dim")
    if family.remotes:
        say(console, "\nelsewhere", "bold")
        for remote in family.remotes:
            say(console, f"  {remote.name}: {remote.model} at {remote.url}")
    if family.dropped:
        say(console, "\nnot kept", "bold")
        for name, reason in family.dropped.items():
            say(console, f"  {name}: {reason}", "dim")


# --- JSON -----------------------------------------------------------------------------------


def family_json(family: Family, profiles: Mapping[str, Profile]) -> dict[str, Any]:
    """Plain data that any JSON writer takes; what was not measured is None.

    Keys: ``folder, created, tierwise, base, total_bytes, reference_call {prompt_tokens,
    reply_tokens}, tiers, remotes, dropped {name: reason}``. Of each tier: ``name, path, sha256,
    bytes, parameters, layers, context_tokens, kv_bytes_per_token``, those of `lineage_json`,
    ``kl_mean_nats, kl_p999_nats, top1_agreement, perplexity, base_perplexity, kv_q8_0,
    task_success, this_machine``. Shares are ``{value, n, low, high}`` with a 95 %
    interval. ``this_machine``: ``estimated, prefill_tokens_per_s, decode_tokens_per_s, load_s,
    resident_bytes, reference_call_s, step_s, sequences_s, kv_q8_0_speed {prefill, decode}``.
    """
    return {
        "folder": str(family.folder),
        "created": family.created,
        "tierwise": family.tierwise,
        "base": family.base.model_dump(mode="json"),
        "total_bytes": sum(tier.bytes for tier in family.tiers),
        "reference_call": {"prompt_tokens": REFERENCE_PROMPT, "reply_tokens": REFERENCE_REPLY},
        "tiers": [_tier_json(family, tier, profiles.get(tier.name)) for tier in family.tiers],
        "remotes": [remote.model_dump(mode="json") for remote in family.remotes],
        "dropped": dict(family.dropped),
    }


def _tier_json(family: Family, tier: Tier, profile: Profile | None) -> dict[str, Any]:
    divergence, tools = tier.quality.divergence, tier.quality.tools
    return {
        "name": tier.name,
        "path": str(family.path(tier)),
        "sha256": tier.sha256,
        "bytes": tier.bytes,
        "parameters": tier.parameters,
        "layers": tier.layers,
        "context_tokens": tier.context_tokens,
        "kv_bytes_per_token": tier.kv_bytes_per_token,
        **lineage_json(tier),
        "kl_mean_nats": None if divergence is None else _finite(divergence.kl_mean),
        "kl_p999_nats": None if divergence is None else _finite(divergence.kl_p999),
        "top1_agreement": _share(None if divergence is None else divergence.top1_agreement),
        "perplexity": None if divergence is None else _finite(divergence.perplexity),
        "base_perplexity": None if divergence is None else _finite(divergence.base_perplexity),
        "kv_q8_0": _kv_json(tier.quality.kv_q8_0),
        "task_success": _share(None if tools is None else tools.overall),
        "this_machine": None if profile is None else _machine_json(profile),
    }


def _machine_json(profile: Profile) -> dict[str, Any]:
    return {
        "estimated": profile.estimated,
        "prefill_tokens_per_s": profile.prefill_tokens_per_s,
        "decode_tokens_per_s": profile.decode_tokens_per_s,
        "load_s": profile.load_s,
        "resident_bytes": profile.resident_bytes,
        "reference_call_s": reference_seconds(profile),
        "step_s": {str(size): step for size, step in profile.step_s.items()},
        "sequences_s": {str(count): step for count, step in profile.sequences_s.items()},
        "kv_q8_0_speed": None if profile.kv_q8_0 is None else profile.kv_q8_0.model_dump(),
    }


def _kv_json(divergence: Divergence | None) -> dict[str, Any] | None:
    if divergence is None:
        return None
    return {
        "kl_mean_nats": _finite(divergence.kl_mean),
        "kl_p999_nats": _finite(divergence.kl_p999),
        "top1_agreement": _share(divergence.top1_agreement),
    }


def _share(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.model_dump(mode="json")


def _finite(value: float) -> float | None:
    """JSON has no infinity: the perplexity of a broken tier can be one."""
    return value if math.isfinite(value) else None


# --- several families -----------------------------------------------------------------------


class Found(NamedTuple):
    """A family's folder, and the family or the error that its loading gave."""

    folder: Path
    family: Family | None
    error: str


def find_families(places: Iterable[Path], *, depth: int = 2, verify: bool = False) -> list[Found]:
    """Families in these folders and ``depth`` levels below; hidden folders are passed over."""
    manifests: dict[Path, Path] = {}
    for place in places:
        for level in range(depth + 1):
            for manifest in sorted(place.glob("*/" * level + MANIFEST)):
                hidden = any(part.startswith(".") for part in manifest.relative_to(place).parts)
                if not hidden:
                    manifests.setdefault(manifest.resolve(), manifest)
    return [_load(manifest.parent, verify) for manifest in manifests.values()]


def _load(folder: Path, verify: bool) -> Found:
    try:
        return Found(folder, Family.load(folder, verify=verify), "")
    except (TierwiseError, OSError) as error:
        return Found(folder, None, str(error))


def families_table(found: Sequence[Found]) -> Table:
    """Folder, base, tiers, total size, and the error of those that are damaged."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("folder", overflow="fold")
    table.add_column("base")
    table.add_column("tiers")
    table.add_column("size", justify="right", no_wrap=True)
    if any(error for _, _, error in found):
        table.add_column("error", style="red", overflow="fold")
    for folder, family, error in found:
        cells = [UNKNOWN, UNKNOWN, UNKNOWN]
        if family is not None:
            names = ", ".join(tier.name for tier in family.tiers)
            cells = [family.base.name, names, size_text(sum(tier.bytes for tier in family.tiers))]
        row = [str(folder), *cells, " ".join(error.split())]
        table.add_row(*(Text(cell) for cell in row[: len(table.columns)]))
    return table


def families_json(found: Sequence[Found]) -> dict[str, Any]:
    """``{"families": [{folder, base, tiers, total_bytes, error}]}``; what is unknown is None."""
    out = []
    for folder, family, error in found:
        tiers = None if family is None else family.tiers
        out.append(
            {
                "folder": str(folder),
                "base": None if family is None else family.base.name,
                "tiers": None if tiers is None else [tier.name for tier in tiers],
                "total_bytes": None if tiers is None else sum(tier.bytes for tier in tiers),
                "error": error or None,
            }
        )
    return {"families": out}
