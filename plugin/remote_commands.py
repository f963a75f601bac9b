"""Commands about tiers on other machines."""

from __future__ import annotations

from typing import Annotated

import typer

from tierwise.plugin.cli_options import AsJson, Folder, print_json

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the remote tier.")]


def connect(
    folder: Folder,
    name: Name,
    url: Annotated[str, typer.Option(help="Of the API, such as http://10.0.0.7:8080/v1.")],
    model: Annotated[str, typer.Option(help="That the server is asked for.")],
    key_variable: Annotated[
        str,
        typer.Option(metavar="VARIABLE", help="Environment variable that holds the server's key."),
    ] = "",
    context_tokens: Annotated[
        int, typer.Option(min=1, help="Longest prompt and reply together.")
    ] = 32_768,
    success: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Its chance of being right; as the best local tier if not given. tierwise "
            "calibrate --remotes finds out.",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Ask it something.")] = True,
    as_json: AsJson = False,
) -> None:
    """Add a model behind an OpenAI-compatible server to a family, as a tier that is asked last.

    Calls go there when no local tier will do. The key itself is never written down. On another
    machine the family's remote tier is left alone until the same command is run there.

    JSON: {"remotes": [{"name", "url", "model", "api_key_env", "context_tokens", "timeout_s",
    "success"}], "seconds"}, seconds being those of the question, or null.
    """
    from pydantic import ValidationError

    from tierwise.runtime.consent import allow
    from tierwise.runtime.errors import ConfigError
    from tierwise.runtime.family import Family
    from tierwise.runtime.remote import ask_briefly
    from tierwise.runtime.remote_tier import RemoteTier
    from tierwise.runtime.units import first_problem

    def with_it(family: Family) -> Family:
        others = [one for one in family.remotes if one.name != name]
        values = family.model_dump() | {"remotes": [*(o.model_dump() for o in others), remote]}
        return Family.model_validate(values)

    try:
        remote = RemoteTier(
            name=name,
            url=url,
            model=model,
            api_key_env=key_variable,
            context_tokens=context_tokens,
            success=success,
        )
        family = Family.load(folder)
        if name in [tier.name for tier in family.tiers]:
            raise ConfigError(
                f"the family has a tier {name!r} of its own; give the remote one another name"
            )
        with_it(family)  # whether it can be, before anybody is asked
    except ValidationError as error:
        raise ConfigError(first_problem(error, "remote tier")) from error
    allow(remote)
    seconds = ask_briefly(remote) if check else None
    known = Family.load(folder)  # once more: it may have been changed meanwhile
    family = with_it(known)
    family.save(known.folder)
    if as_json:
        remotes = [one.model_dump(mode="json") for one in family.remotes]
        print_json({"remotes": remotes, "seconds": seconds})
        return
    took = "" if seconds is None else f"; it answered in {seconds:.2f} s"
    typer.echo(f"{name} is a tier of {family.folder}{took}")


def disconnect(folder: Folder, name: Name, as_json: AsJson = False) -> None:
    """Take a remote tier out of a family.

    JSON: {"remotes": [name]}.
    """
    from tierwise.runtime.errors import ConfigError
    from tierwise.runtime.family import Family

    family = Family.load(folder)
    left = tuple(one for one in family.remotes if one.name != name)
    if len(left) == len(family.remotes):
        known = ", ".join(one.name for one in family.remotes) or "none"
        raise ConfigError(f"there is no remote tier {name!r}; there are: {known}")
    family.model_copy(update={"remotes": left}).save(family.folder)
    if as_json:
        print_json({"remotes": [one.name for one in left]})
        return
    typer.echo(f"{name} is no longer a tier of {family.folder}")
