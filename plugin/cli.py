"""The command line: parses, checks, and calls one function. Heavy imports sit in the commands."""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from tierwise import __version__
from tierwise.plugin import build_options as options
from tierwise.plugin.cli_options import (
    AsJson,
    BudgetJoules,
    BudgetMemory,
    BudgetSeconds,
    Folder,
    MaxTokens,
    MeanQuality,
    MeanSeconds,
    Plot,
    PowerMode,
    Price,
    Quality,
    State,
    System,
    Thinking,
    Threads,
    budget_of,
    print_json,
)
from tierwise.plugin.learn_command import learn
from tierwise.plugin.remote_commands import connect, disconnect
from tierwise.plugin.routing_commands import calibrate, explain, replay
from tierwise.runtime.errors import TierwiseError

if TYPE_CHECKING:
    from tierwise.runtime.family import Family

STOPPED_EXIT, ERROR_EXIT = 130, 2
_UsageError: Any = typer.BadParameter.__base__  # of click, or of the copy of it that typer brings


class _Commands(TyperGroup):
    """Turns errors into one clear line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj = State(json="--json" in args)  # until the command itself has read its options
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        state: State = ctx.obj
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # for terminals that have no "✓"
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _complain(state, error, state.when_stopped, prefix="")
            raise typer.Exit(STOPPED_EXIT) from error
        except BrokenPipeError:
            raise  # whoever read our output has left; typer ends quietly
        except _UsageError as error:
            if not state.json:
                raise  # typer shows how the command is used
            _complain(state, error, error.format_message())
            raise typer.Exit(ERROR_EXIT) from error
        except (TierwiseError, OSError) as error:
            _complain(state, error, str(error))
            raise typer.Exit(ERROR_EXIT) from error


def _complain(state: State, error: BaseException, message: str, prefix: str = "error: ") -> None:
    message = " ".join(message.split())
    if state.debug:
        traceback.print_exception(error)
    if state.json:
        print_json({"error": {"type": type(error).__name__, "message": message}})
    else:
        typer.echo(f"{prefix}{message}", err=True)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Errors exit with 2 and one line on stderr; with --json, as an object "
    '{"error": {"type", "message"}} on stdout. An interrupted command exits with 130.',
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"tierwise {__version__}")
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """One base model in, a measured family of GGUF tiers out, and the cheapest for each call."""
    del version
    ctx.obj.debug = debug


# --- making families ------------------------------------------------------------------------


@app.command()
def build(
    ctx: typer.Context,
    base: options.Base,
    out: options.Out,
    tiers: options.Tiers = None,
    max_bytes: options.MaxBytes = None,
    distill_minutes: options.Minutes = None,
    transcripts: options.Transcripts = None,
    corpus: options.Corpus = None,
    mixed: options.Mixed = None,
    effort: options.EffortName = None,
    recipe: options.Recipe = None,
    threads: Threads = None,
    seed: options.Seed = None,
    as_json: AsJson = False,
) -> None:
    """Make a family of tiers from one base model.

    Prunes and teaches students if asked to, quantizes, measures, and keeps the best. Stop it
    whenever you like: the same command goes on. DIR/recipe.yaml makes the same tiers again.

    JSON: as for `tierwise show`.
    """
    ctx.obj.when_stopped = "stopped; the same command goes on where it was"
    from tierwise.compression.build import build_family
    from tierwise.plugin.rendering import RichReporter

    taught = {"minutes": distill_minutes, "transcripts": transcripts, "corpus": corpus}
    config = options.config_of(
        recipe,
        taught,
        tiers=tiers,
        max_bytes=max_bytes,
        mixed=mixed,
        effort=effort,
        threads=threads,
        seed=seed,
    )
    family = build_family(base, out, config, reporter=RichReporter())
    _show_family(family, as_json, hint=True)


@app.command()
def adopt(
    ctx: typer.Context,
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file of the same base.")],
    name: Annotated[
        str | None, typer.Option(help="Of the tier; from the file if left out.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure", help="Measure speed and task success, or leave them unknown."
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Take a GGUF file that was made elsewhere into a family, as a further tier.

    JSON: as for `tierwise show`.
    """
    ctx.obj.when_stopped = "stopped; the family is as it was"
    from tierwise.compression.adopt import adopt_tier
    from tierwise.plugin.rendering import RichReporter

    family = adopt_tier(folder, file, name=name, measure=measure, reporter=RichReporter())
    _show_family(family, as_json, hint=True)


def _show_family(family: Family, as_json: bool, *, hint: bool = False) -> None:
    from tierwise.plugin.rendering import family_json, make_console, print_family, say
    from tierwise.runtime.profile import family_profiles

    profiles = family_profiles(family)
    if as_json:
        print_json(family_json(family, profiles))
        return
    console = make_console()
    print_family(console, family, profiles)
    if hint:
        say(console, f"\nTry it: tierwise run {shlex.quote(os.fspath(family.folder))}")


# --- looking at families --------------------------------------------------------------------


@app.command("list")
def list_families(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH]...", help="Where to look, two levels deep; here if none."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare every file's hash.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the families under some folders, the damaged ones with their error.

    JSON: {"families": [{"folder", "base", "tiers": [name], "total_bytes", "error"}]}, where of
    base, tiers and total_bytes or error, either is null.
    """
    from tierwise.plugin.rendering import (
        families_json,
        families_table,
        find_families,
        make_console,
        say,
    )

    places = paths or [Path()]
    found = find_families(places, verify=verify)
    if as_json:
        print_json(families_json(found))
    elif found:
        make_console().print(families_table(found))
    else:
        where = ", ".join(str(place.absolute()) for place in places)
        say(make_console(), f"no families under {where}; `tierwise build` makes one")


@app.command()
def show(folder: Folder, plot: Plot = False, as_json: AsJson = False) -> None:
    """Show a family: quality, size and speed of its tiers, and where they come from.

    JSON: {"folder", "created", "tierwise", "base", "total_bytes", "reference_call", "tiers",
    "remotes", "dropped"}. Each tier has "name", "path", "bytes", "layers", how it was made
    ("quantization", "pruned_layers", "ffn_channels", "kv_heads", "kv_type", "tensor_overrides",
    "demonstration_tokens", "distillation", "learning"),
    "kl_mean_nats", "kl_p999_nats", "top1_agreement", "perplexity", "task_success", "kv_q8_0" (what
    such a KV cache adds), and "this_machine": "prefill_tokens_per_s", "decode_tokens_per_s",
    "load_s", "resident_bytes", "reference_call_s", "step_s" (of a decode step by tokens of one
    sequence), "sequences_s" (by sequences), "kv_q8_0_speed" (multiples of f16's), "estimated".
    Shares are {"value", "n", "low", "high"}; what was not measured is null or empty. With --plot:
    {"report", "opened"}.
    """
    if plot:
        from tierwise.plugin.show_report import show_report

        show_report(folder, as_json, print_json)
        return
    from tierwise.runtime.family import Family

    _show_family(Family.load(folder), as_json)


# --- calls ----------------------------------------------------------------------------------


@app.command()
def run(
    folder: Folder,
    prompt: Annotated[str | None, typer.Option(help="Answer this one and leave.")] = None,
    tier: Annotated[str | None, typer.Option(help="Use this tier and no other.")] = None,
    budget_seconds: BudgetSeconds = None,
    budget_memory: BudgetMemory = None,
    budget_joules: BudgetJoules = None,
    quality: Quality = None,
    power: PowerMode = None,
    price: Price = None,
    mean_seconds: MeanSeconds = None,
    mean_quality: MeanQuality = None,
    max_tokens: MaxTokens = 1024,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest.")] = 0.0,
    system: System = "",
    reasoning: Thinking = None,
    kv_type: Annotated[Literal["f16", "q8_0"] | None, typer.Option(help="Of the cache.")] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Chat with a family in the terminal.

    After each reply a line on stderr tells the tier, why, and predicted and actual seconds.
    Ctrl-C stops the reply, a second one leaves. In the chat, /tier NAME uses that tier, /tier
    chooses freely again, /explain shows the decision, /exit leaves. Where stdin is no terminal,
    each of its lines is one turn of the conversation.

    JSON: {"family", "replies": [{"prompt", "text", "finish_reason", "usage", "tier", "reason",
    "predicted_s", "actual_s", "total_s", "predicted_joules", "total_joules", "escalated",
    "problem", "attempts", "decision"}]}; after a turn that cannot be answered no more is asked, and
    the last entry is {"error": {"type", "message"}}.
    """
    from tierwise.plugin.terminal_chat import talk

    replies = talk(
        folder,
        budget_of(
            price,
            seconds_per_call=budget_seconds,
            memory=budget_memory,
            joules_per_call=budget_joules,
            quality=quality,
            power=power,
            mean_seconds=mean_seconds,
            mean_quality=mean_quality,
        ),
        prompt=prompt,
        tier=tier,
        max_tokens=max_tokens,
        temperature=temperature,
        system=system,
        reasoning=reasoning,
        kv_type=kv_type,
        threads=threads,
        silent=as_json,
    )
    if as_json:
        print_json({"family": str(folder), "replies": replies})
    if any("error" in reply for reply in replies):
        raise typer.Exit(ERROR_EXIT)


for _command in (explain, calibrate, replay, learn, connect, disconnect):
    app.command()(_command)


# --- the machine ----------------------------------------------------------------------------


@app.command()
def doctor(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Also look at this family.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what this machine can run and what is missing, with the cure.

    Exits with 1 if something fails; warnings do not count.

    JSON: {"ok", "findings": [{"name", "status", "detail", "cure"}]}, status being ok, warn or
    fail.
    """
    from tierwise.plugin.doctor import examine
    from tierwise.plugin.rendering import make_console
    from tierwise.plugin.signs import findings_table

    findings = examine(folder)
    ok = all(finding.status != "fail" for finding in findings)
    if as_json:
        print_json({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    else:
        console = make_console()
        console.print(findings_table(console, findings))
    if not ok:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
