"""Chatting with a family in the terminal, without langchain in between."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from tierwise.plugin.rendering import make_console, say
from tierwise.routing.answer import Answer
from tierwise.routing.budget import Budget
from tierwise.routing.calibration_store import calibration_of
from tierwise.routing.cascade import stream_answer
from tierwise.routing.decision import Decision
from tierwise.routing.router import Router
from tierwise.runtime.chat import Call, Message, Reasoning, Sampling, Tool
from tierwise.runtime.context import KVType
from tierwise.runtime.errors import ConfigError, TierwiseError
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool

COMMANDS = "/tier NAME uses that tier, /tier chooses freely again, /explain shows why, /exit leaves"

# A model's text may hold escape sequences; a terminal would obey them.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)])
for _kept in "\n\t":
    del _CONTROLS[ord(_kept)]

Show = Callable[[str], None]


class Conversation:
    """The turns so far, and how the next one is to be answered.

    Args:
        router: Of the family.
        system: System prompt; "" for none.
        pin: Name of the tier to use; None to let the router choose.
    """

    def __init__(
        self,
        router: Router,
        *,
        system: str = "",
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        reasoning: Reasoning | None = None,
        pin: str | None = None,
    ) -> None:
        self.router = router
        self.pin: str | None = None
        self.last: Answer | None = None
        self._call = Call(
            messages=_opening(system),
            sampling=sampling or Sampling(),
            max_tokens=max_tokens,
            reasoning=reasoning,
        )
        self.use(pin)

    def use(self, tier: str | None) -> None:
        """Answers with this tier from now on. ConfigError if the family has none of the name."""
        self.pin = None if tier is None else self.router.family.member(tier).name

    def ask(self, prompt: str, show: Show) -> Answer:
        """Answers one turn; ``show`` receives the text as it comes.

        An interrupted reply is remembered as far as it came; a failed turn is not remembered.

        Raises:
            TierwiseError: As `stream_answer`.
        """
        call = self._call.with_messages(Message("user", prompt))
        said: list[str] = []
        with closing(stream_answer(self.router, call, pin=self.pin)) as events:
            try:
                for event in events:
                    if isinstance(event, Answer):
                        self.last = event
                    elif not event.reasoning:
                        said.append(event.text)
                        show(event.text)
            except KeyboardInterrupt:
                self._call = call.with_messages(Message("assistant", "".join(said)))
                raise
        assert self.last is not None
        self._call = call.with_messages(Message("assistant", self.last.reply.text))
        return self.last

    def command(self, line: str, console: Console) -> bool:
        """Does what a line such as ``/tier NAME`` says; False if it was ``/exit``."""
        name, _, argument = line.strip().partition(" ")
        argument = argument.strip()
        if name == "/exit":
            return False
        if name == "/tier":
            self.use(argument or None)
            say(console, f"from now on: {self.pin or 'whichever tier will do'}", "dim")
        elif name == "/explain":
            said = "nothing was asked yet" if self.last is None else explanation(self.last)
            say(console, said, "dim")
        else:
            say(console, COMMANDS, "dim")
        return True


def explanation(answer: Answer) -> str:
    """The decision behind each attempt, as a table."""
    return "\n\n".join(attempt.decision.table() for attempt in answer.attempts)


def summary(answer: Answer) -> str:
    """One line: tier, reason, predicted and actual seconds, whether it escalated."""
    final = answer.final
    parts = [final.decision.tier, final.decision.reason]
    took = f"predicted {final.decision.forecast.seconds:.2f} s, took {final.seconds:.2f} s"
    if answer.escalated:
        took += f" ({answer.seconds:.2f} s with the tiers tried before)"
    parts.append(took)
    if answer.escalated:
        parts.append("escalated")
    if final.problem:
        parts.append(final.problem)
    return " · ".join(parts)


def answer_json(prompt: str, answer: Answer) -> dict[str, Any]:
    """Plain data: ``prompt, text, finish_reason, usage``, and all of `Answer.to_json`."""
    reply = answer.reply
    return {
        "prompt": prompt,
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": asdict(reply.usage),
        **answer.to_json(),
    }


def answer_turn(conversation: Conversation, prompt: str, console: Console, show: Show) -> Answer:
    """Shows the reply to one prompt as it comes, then a dim summary on ``console``."""
    answer = conversation.ask(prompt, show)
    show("\n")
    say(console, summary(answer), "dim")
    return answer


def answer_lines(
    conversation: Conversation, lines: Iterable[str], console: Console, show: Show
) -> Iterator[tuple[str, Answer]]:
    """Answers one line after another, as turns of one conversation; yields each with its answer.

    Empty lines are skipped; those that begin with "/" are commands.

    Raises:
        TierwiseError: A turn cannot be answered; the turns after it are not asked.
    """
    for line in lines:
        prompt = line.strip()
        if prompt.startswith("/"):
            if not conversation.command(prompt, console):
                return
        elif prompt:
            yield prompt, answer_turn(conversation, prompt, console, show)


def chat(conversation: Conversation, console: Console) -> None:
    """Reads prompts from the terminal until ``/exit``, Ctrl-D, or the second Ctrl-C in a row.

    The first Ctrl-C stops the reply that is being written. What cannot be answered is said,
    and the chat goes on.

    Raises:
        KeyboardInterrupt: The second in a row.
    """
    with suppress(ImportError):  # gives `input` a history; not on Windows
        import readline  # noqa: F401
    say(console, COMMANDS, "dim")
    interrupted = False
    while True:
        try:
            line = input("> ").strip()
            if line.startswith("/"):
                if not conversation.command(line, console):
                    return
            elif line:
                answer_turn(conversation, line, console, write)
        except EOFError:
            print()
            return
        except TierwiseError as error:
            say(console, f"error: {error}", "red")
        except KeyboardInterrupt:
            print()
            if interrupted:
                raise
            say(console, "stopped; Ctrl-C once more leaves", "dim")
            interrupted = True
            continue
        interrupted = False


def write(text: str) -> None:
    """Puts a piece of a reply on standard output at once, without control characters."""
    sys.stdout.write(text.translate(_CONTROLS))
    sys.stdout.flush()


def talk(
    folder: Path,
    budget: Budget,
    *,
    prompt: str | None = None,
    tier: str | None = None,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    system: str = "",
    reasoning: Reasoning | None = None,
    kv_type: KVType | None = None,
    threads: int | None = None,
    silent: bool = False,
) -> list[dict[str, Any]]:
    """Answers one prompt, else chats at the terminal, else answers the lines of stdin.

    Args:
        folder: Of the family.
        silent: Shows no replies and does not chat; summaries go to stderr all the same.

    Returns:
        The replies as `answer_json` has them; none of a chat. With ``silent``, a later turn that
        cannot be answered is the last, as ``{"error": {"type", "message"}}``.

    Raises:
        TierwiseError: The family is not usable, or a turn cannot be answered (with ``silent``, the
            first).
        KeyboardInterrupt: Where it is no chat, at once; in a chat as `chat` says.
    """
    family = Family.load(folder)
    console = make_console(stderr=True)
    show = _nowhere if silent else write
    with Pool(family, memory_bytes=budget.memory, threads=threads, kv_type=kv_type) as pool:
        conversation = Conversation(
            Router(family, pool, budget, calibration=calibration_of(family)),
            system=system,
            sampling=Sampling(temperature=temperature),
            max_tokens=max_tokens,
            reasoning=reasoning,
            pin=tier,
        )
        if prompt is not None:
            return [answer_json(prompt, answer_turn(conversation, prompt, console, show))]
        if not silent and sys.stdin.isatty() and sys.stdout.isatty():
            chat(conversation, console)
            return []
        replies: list[dict[str, Any]] = []
        try:
            for line, answer in answer_lines(conversation, sys.stdin, console, show):
                replies.append(answer_json(line, answer))
        except TierwiseError as error:
            if not (silent and replies):
                raise
            replies.append({"error": {"type": type(error).__name__, "message": str(error)}})
        return replies


def _nowhere(text: str) -> None:
    del text


def decide(
    folder: Path,
    prompt: str,
    budget: Budget,
    *,
    tools: Path | None = None,
    max_tokens: int | None = None,
    system: str = "",
) -> Decision:
    """Which tier would answer a call; nothing is generated.

    Args:
        tools: File for `read_tools`.

    Raises:
        TierwiseError: The family or the file is not usable, or no tier can answer.
    """
    family = Family.load(folder)
    call = Call(
        messages=(*_opening(system), Message("user", prompt)),
        tools=() if tools is None else read_tools(tools),
        max_tokens=max_tokens,
    )
    with Pool(family, memory_bytes=budget.memory) as pool:
        router = Router(family, pool, budget, calibration=calibration_of(family))
        return router.decide(call)


def _opening(system: str) -> tuple[Message, ...]:
    return (Message("system", system),) if system else ()


def read_tools(file: Path) -> tuple[Tool, ...]:
    """Function definitions from a JSON file: a list in OpenAI's form, wrapped or bare.

    Raises:
        ConfigError: The file is missing, is not JSON, or holds something else.
    """
    form = '[{"name": …, "description": …, "parameters": {"type": "object", …}}]'
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the tools file {str(file)!r}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"the tools file {str(file)!r} is not valid JSON: {error}") from error
    if not isinstance(data, list):
        raise ConfigError(f"the tools file {str(file)!r} must hold a list: {form}")
    tools = []
    for index, item in enumerate(data):
        inner = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise ConfigError(f"tool {index} of {str(file)!r} has no name; write {form}")
        parameters = inner.get("parameters", {"type": "object", "properties": {}})
        if not isinstance(parameters, dict):
            raise ConfigError(
                f"the parameters of tool {inner['name']!r} in {str(file)!r} must be a JSON schema, "
                f"not {parameters!r}"
            )
        tools.append(Tool(inner["name"], str(inner.get("description", "")), parameters))
    return tuple(tools)
