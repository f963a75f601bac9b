"""Options that several commands share, and how they print what machines read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tierwise.routing.budget import Budget


@dataclass(slots=True)
class State:
    """What the command that runs has said about how it wants to fail."""

    json: bool = False
    debug: bool = False
    when_stopped: str = "stopped"


def print_json(document: Any) -> None:
    """On stdout, with null for what is not known."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))


def _note_json(ctx: typer.Context, value: bool) -> bool:
    if isinstance(ctx.obj, State):
        ctx.obj.json = value
    return value


AsJson = Annotated[
    bool, typer.Option("--json", callback=_note_json, help="Print one JSON document instead.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The family's folder.")]
Plot = Annotated[bool, typer.Option("--plot", help="Open its report, with plots, in the browser.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="For llama.cpp; all usable cores by default.")
]
BudgetSeconds = Annotated[
    float | None, typer.Option(help="Most seconds for a call, loading included.")
]
BudgetMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Most memory for all loaded tiers, such as 500MB or 2GiB."),
]
Quality = Annotated[
    float | None,
    typer.Option(
        help="Floor for a tier's chance of success, as a share of the best tier's: 1 always asks "
        "for the best, 0 takes the cheapest; 0.9 by default."
    ),
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest reply, in tokens.")]
System = Annotated[str, typer.Option(help="System prompt.")]


def budget_of(seconds: float | None, memory: str | None, quality: float | None) -> Budget:
    """What those options grant."""
    from tierwise.routing.budget import Budget

    given = {"seconds_per_call": seconds, "memory": memory, "quality": quality}
    return Budget(**{name: value for name, value in given.items() if value is not None})
