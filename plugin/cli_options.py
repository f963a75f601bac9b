"""Options that several commands share, and how they print what machines read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tierwise.runtime.chat import Reasoning
from tierwise.runtime.errors import ConfigError

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
BudgetJoules = Annotated[float | None, typer.Option(help="Most joules of this machine for a call.")]
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
PowerMode = Annotated[
    Literal["auto", "performance", "balanced", "saver"] | None,
    typer.Option(
        help="How much joules count beside seconds; auto, the default, goes by mains and battery."
    ),
]
Price = Annotated[
    list[str] | None,
    typer.Option(
        metavar="UNIT=PRICE",
        help="What a second, gigabyte or joule of a call costs, a right answer being worth 1: "
        "second=0.01. Can be given several times.",
    ),
]
MeanSeconds = Annotated[
    float | None, typer.Option(help="Most seconds on average; for calibrated families.")
]
MeanQuality = Annotated[
    float | None,
    typer.Option(
        help="Share of the best tier's successes to be kept on average; for calibrated families."
    ),
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest reply, in tokens.")]
Thinking = Annotated[
    Reasoning | None,
    typer.Option("--reasoning", help="Whether models think first, and how hard; as they like."),
]
System = Annotated[str, typer.Option(help="System prompt.")]


_UNITS = ("second", "gigabyte", "joule")


def budget_of(prices: Iterable[str] | None = None, **given: Any) -> Budget:
    """What those options grant.

    Args:
        prices: As of `Price`.
        given: Fields of the budget; None where the option was left out.

    Raises:
        ConfigError: A price that cannot be read, or a value that cannot be.
    """
    from tierwise.routing.budget import Budget

    for text in prices or ():
        unit, _, price = text.partition("=")
        if unit not in _UNITS or not price:
            raise ConfigError(
                f"--price {text!r} is no price; write for example --price second=0.01, of "
                f"{', '.join(_UNITS)}"
            )
        given[f"price_per_{unit}"] = price
    return Budget(**{name: value for name, value in given.items() if value is not None})
