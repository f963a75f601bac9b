"""The options of ``tierwise build``, and the config that they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierwise.runtime.errors import ConfigError

if TYPE_CHECKING:
    from tierwise.compression.recipe import BuildConfig

Base = Annotated[
    str,
    typer.Argument(
        help="A GGUF file (./model.gguf), a transformers folder, bundled:smollm2, or a "
        "Hugging Face id (org/name, org/name@revision, org/name:file.gguf)."
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the family.")]
Tiers = Annotated[
    int | None,
    typer.Option(help="How many to keep at most; 3 by default, and 5 with distillation."),
]
MaxBytes = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Largest file allowed, such as 2GiB.")
]
Recipe = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML file with build options; options given here win."),
]
EffortName = Annotated[
    str | None,
    typer.Option(
        metavar="quick|normal|thorough",
        help="How much is measured; normal by default, and thorough with distillation.",
    ),
]
Mixed = Annotated[
    bool | None,
    typer.Option("--mixed/--no-mixed", help="Search a type for every tensor, or stock types only."),
]
Minutes = Annotated[
    float | None,
    typer.Option(min=0, help="Prune students and teach them for so long, all together."),
]
Transcripts = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="JSONL of LangChain conversations to teach students with."),
]
Corpus = Annotated[
    list[Path] | None,
    typer.Option(metavar="PATH", help="Text file or folder to teach students with."),
]
Seed = Annotated[int | None, typer.Option(help="Of all texts and tasks.")]


def config_of(recipe: Path | None, taught: dict[str, Any], **given: Any) -> BuildConfig:
    """The config of a recipe and of what was given on the command line, which wins.

    Args:
        recipe: A YAML file.
        taught: Of `DistillConfig`; None and empty lists are as good as not given.
        given: Of `BuildConfig`.

    Raises:
        ConfigError: The recipe cannot be read, an option makes no sense, or there is text to
            teach with and no time.
    """
    from tierwise.compression.recipe import BuildConfig

    values = {name: value for name, value in given.items() if value is not None}
    distill = {name: value for name, value in taught.items() if value not in (None, [])}
    if distill:
        values["distill"] = distill
    if distill and "minutes" not in distill:
        known = recipe is not None and BuildConfig.load(recipe).distill is not None
        if not known:
            raise ConfigError(
                "transcripts and corpus are what students are taught with; say for how long too, "
                "for example --distill-minutes 60"
            )
    return BuildConfig.make(**values) if recipe is None else BuildConfig.load(recipe, **values)
