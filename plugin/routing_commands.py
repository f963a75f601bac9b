"""Commands about routing: why a tier is chosen, calibration, and logs under another budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tierwise.plugin.cli_options import (
    AsJson,
    BudgetJoules,
    BudgetMemory,
    BudgetSeconds,
    Folder,
    MaxTokens,
    MeanQuality,
    MeanSeconds,
    PowerMode,
    Price,
    Quality,
    System,
    budget_of,
    print_json,
)
from tierwise.runtime.chat import Reasoning


def explain(
    folder: Folder,
    prompt: Annotated[str, typer.Argument(help="The user's turn.")],
    tools: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON list of function definitions in OpenAI's form."),
    ] = None,
    budget_seconds: BudgetSeconds = None,
    budget_memory: BudgetMemory = None,
    budget_joules: BudgetJoules = None,
    quality: Quality = None,
    power: PowerMode = None,
    price: Price = None,
    mean_seconds: MeanSeconds = None,
    mean_quality: MeanQuality = None,
    max_tokens: MaxTokens = None,
    system: System = "",
    as_json: AsJson = False,
) -> None:
    """Show which tier would answer a call, and why; nothing is generated.

    JSON: {"tier", "reason", "difficulty", "prompt_tokens", "forecasts": [{"tier", "success",
    "seconds", "first_token_s", "joules", "memory_bytes", "new_tokens", "cold", "feasible",
    "verdict", "return_s", "reload_s", "crowds"}]}.
    """
    from tierwise.plugin.terminal_chat import decide

    budget = budget_of(
        price,
        seconds_per_call=budget_seconds,
        memory=budget_memory,
        joules_per_call=budget_joules,
        quality=quality,
        power=power,
        mean_seconds=mean_seconds,
        mean_quality=mean_quality,
    )
    decision = decide(folder, prompt, budget, tools=tools, max_tokens=max_tokens, system=system)
    if as_json:
        print_json(decision.to_json())
    else:
        typer.echo(decision.table())


def calibrate(
    ctx: typer.Context,
    folder: Folder,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:N]",
            help="What to ask: tools, bfcl-simple_python, bfcl-multiple, bfcl-parallel or "
            "bfcl-irrelevance, the first N of it; tools by default. Can be given several times.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL of your own prompts, with what is right: `prompt` or `messages`, "
            "`expected`, `check` (exact, contains, number, regex, json, calls or reference), "
            "`group`, `tools`. A text is compared exactly if no check is given.",
        ),
    ] = None,
    remotes: Annotated[
        bool,
        typer.Option("--remotes", help="Also ask remote tiers; says first how many calls that is."),
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop asking after so many; go on another time.")
    ] = None,
    quality: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the best tier's quality to be kept.")
    ] = 0.9,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all outcomes, .csv or .parquet.")
    ] = None,
    reasoning: Annotated[
        Reasoning,
        typer.Option(help="Whether models think first. Calibrate as you will ask."),
    ] = "off",
    seed: Annotated[int, typer.Option(help="Of tasks and splits.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Learn from a family's own answers when its cheap tiers will do, and whether routing pays.

    Every tier answers every prompt; what is known is not asked again. From then on ChatTierwise
    goes by what was learned, or by what each tier is worth in general, where routing is not shown
    to pay. Remote tiers, whose calls may cost money, are asked only with --remotes.

    JSON: {"tiers", "sha256", "estimator", "areas", "means", "usual", "verified", "floor", "suites",
    "verdict", "reliability", "prices": [{"mean_quality", "per_second", "seconds", "right", "kept",
    "n", "met", "reason"}], "unasked", "notes", "report"}.
    """
    ctx.obj.when_stopped = "stopped; what was asked is kept, and the same command goes on"
    from tierwise.evaluation.outcomes import OUTCOMES, OutcomeStore, check_export
    from tierwise.evaluation.suites import load_suite, own_suite, with_reasoning
    from tierwise.plugin.calibration_report import write_calibration_report
    from tierwise.plugin.calibration_text import calibration_text, mean_prices
    from tierwise.plugin.rendering import RichReporter
    from tierwise.routing.calibrate import calibrate_family, remote_calls
    from tierwise.routing.calibration_store import calibration_json
    from tierwise.runtime.family import Family

    family = Family.load(folder)
    if export is not None:
        check_export(export)
    names = suite or ([] if data else ["tools"])
    suites = [load_suite(name, seed=seed) for name in names]
    if reasoning != "off":  # of your own prompts each says it for itself
        suites = [with_reasoning(one, reasoning) for one in suites]
    suites += [own_suite(data, seed=seed)] if data else []
    notes: list[str] = []
    for remote, count in remote_calls(family, suites).items() if remotes else ():
        typer.echo(f"{remote.name} ({remote.model} at {remote.url}): {count} calls", err=True)
    with RichReporter().stage("Asking every tier") as progress:
        found, unasked = calibrate_family(
            family,
            suites,
            remotes=remotes,
            minutes=minutes,
            floor=quality,
            seed=seed,
            progress=progress,
            note=notes.append,
        )
    report = write_calibration_report(family, found)
    if export is not None:
        with OutcomeStore(family.folder / OUTCOMES) as store:
            store.export(export)
    if as_json:
        prices = [{"mean_quality": q, **p.to_json()} for q, p in mean_prices(found).items()]
        rest = {"prices": prices, "unasked": unasked, "notes": notes, "report": str(report)}
        print_json({**calibration_json(found), **rest})
        return
    typer.echo(calibration_text(found))
    typer.echo(f"\n{report}")
    for line in notes:
        typer.echo(line)
    if unasked:
        typer.echo(f"{unasked} prompts are left to ask; the same command goes on")


def replay(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A decision log.")],
    budget_seconds: BudgetSeconds = None,
    budget_memory: BudgetMemory = None,
    budget_joules: BudgetJoules = None,
    quality: Quality = None,
    power: PowerMode = None,
    price: Price = None,
    as_json: AsJson = False,
) -> None:
    """Show what would have been decided under another budget; nothing is generated.

    JSON: {"calls", "changed", "refused", "seconds": {"then", "now"}, "joules", "success", "tiers"}.
    """
    from tierwise.routing.decision_log import read_log
    from tierwise.routing.replay import replay as replayed

    budget = budget_of(
        price,
        seconds_per_call=budget_seconds,
        memory=budget_memory,
        joules_per_call=budget_joules,
        quality=quality,
        power=power,
    )
    found = replayed(read_log(log), budget).to_json()
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['calls']} calls, {found['changed']} of them to another tier")
    for name, unit in (("seconds", "s"), ("joules", "J"), ("success", "")):
        typer.echo(f"{name:<10}{found[name]['then']:>10} {unit} then{found[name]['now']:>10} now")
    tiers = found["tiers"]
    for tier in dict.fromkeys((*tiers["then"], *tiers["now"])):
        then, now = tiers["then"].get(tier, 0), tiers["now"].get(tier, 0)
        typer.echo(f"{tier:<20}{then:>6} then{now:>6} now")
