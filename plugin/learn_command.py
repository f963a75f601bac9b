"""``tierwise learn``: a tier learns from the calls that better ones had to answer for it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierwise.plugin.cli_options import AsJson, Folder, Threads, print_json

if TYPE_CHECKING:
    from tierwise.plugin.learning import Learned


def learn(
    ctx: typer.Context,
    folder: Folder,
    logs: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", metavar="LOG", help="Decision log with text. Can be given several times."
        ),
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option(help="Whom to teach; by default who gave way to better ones most often."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Of training; 20 by default.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of training, in place of minutes.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:N]",
            help="General tasks that it must not become worse at, as of tierwise calibrate; "
            "tools by default. Can be given several times.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of those that may be lost; 0.05 by default."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is held out, and of training.")] = 0,
    threads: Threads = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Put the file before the latest swap in its place again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Teach a cheap tier what better ones had to answer for it, and keep it if it is better.

    Learns from calls of a decision log that were escalated to a reply which stands, or that you
    confirmed; the log must hold text (log_text=True). A third of them is set aside, and so is a
    suite of general tasks: only if it does better on those is its file swapped. Stop it whenever
    you like: the same command goes on.

    JSON: {"tier", "swapped", "learned", "better", "reason", "tolerance", "logged", "general",
    "all", "file", "sha256", "before", "calibrate"}; logged, general and all are {"tasks",
    "before", "after", "gain": {"value", "low", "high"}, "gained", "lost", "chance"}. With --undo:
    {"tier", "file", "sha256"}.
    """
    ctx.obj.when_stopped = "stopped; the family is as it was, and the same command goes on"
    from tierwise.runtime.errors import ConfigError

    if undo:
        _undo(folder, tier, as_json)
        return
    if not logs:
        raise ConfigError("say which decision log to learn from: --from LOG")
    from pydantic import ValidationError

    from tierwise.plugin.learning import LearnConfig, learn_tier
    from tierwise.plugin.rendering import RichReporter
    from tierwise.runtime.units import first_problem

    given = {"minutes": minutes, "steps": steps, "suites": suite, "tolerance": tolerance}
    try:
        config = LearnConfig.model_validate(
            {"seed": seed, **{name: value for name, value in given.items() if value is not None}}
        )
    except ValidationError as error:
        raise ConfigError(first_problem(error, "option")) from error
    found = learn_tier(
        folder, logs, tier=tier, config=config, threads=threads, reporter=RichReporter()
    )
    if as_json:
        print_json(found.to_json())
    else:
        typer.echo(_text(found, folder))


def _undo(folder: Path, tier: str | None, as_json: bool) -> None:
    from tierwise.compression.swap import undo_swap

    _, old = undo_swap(folder, tier)
    if as_json:
        print_json({"tier": old.name, "file": old.file, "sha256": old.sha256})
    else:
        typer.echo(f"{old.name} is {old.file} again")


def _text(found: Learned, folder: Path) -> str:
    judged = found.comparison
    lines = [
        f"{found.tier} {'was' if found.before else 'is'} taught {found.learned} logged calls",
        f"logged calls that it never learned: {judged.logged}",
    ]
    if judged.general is not None:
        lines += [f"general tasks: {judged.general}", f"all together: {judged.all}"]
    if not found.swapped:
        lines.append(f"\n{found.tier} stays as it was: {judged.reason}")
        return "\n".join(lines)
    lines.append(f"\n{found.tier} has a new file: {judged.reason}")
    place = shlex.quote(str(folder))
    lines.append(f"The old one stays for: tierwise learn {place} --undo --tier {found.tier}")
    if found.calibrated:
        lines.append(f"The calibration is of the old file: run tierwise calibrate {place} again")
    return "\n".join(lines)
