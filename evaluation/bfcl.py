"""The Berkeley Function Calling Leaderboard's single-turn categories as tasks.

Questions and answers are read at run time from the package ``bfcl-eval`` (Apache-2.0), from a
wheel of it, or from a folder in its format; nothing of them is copied here. Only the categories
of `CATEGORIES` are read: the ``live_*`` files are for acceptance alone.

Source: S. G. Patil et al., The Berkeley Function Calling Leaderboard, ICML 2025,
https://github.com/ShishirPatil/gorilla/tree/main/berkeley-function-call-leaderboard
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from tierwise.evaluation.bfcl_rules import Gold, right_calls
from tierwise.runtime.chat import Call, JSONObject, Message, Reply, Tool
from tierwise.runtime.errors import ConfigError, MissingExtraError

Category = Literal["simple_python", "multiple", "parallel", "irrelevance"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

PACKAGE = "bfcl-eval==2026.3.23"

MAX_TOKENS = 256
"""Longest reply; gold calls have at most some 150 tokens."""

_PREFIX = "BFCL_v4_"
_ANSWERS = "possible_answer/"
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""BFCL's words for types where JSON schema has others; the leaderboard maps them so too."""


@dataclass(frozen=True, slots=True)
class BfclTask:
    """One question of the leaderboard.

    Args:
        id: As there, e.g. "simple_python_17".
        category: It is from.
        call: What the model sees. A call must come, save in category irrelevance, where the
            model may choose.
        functions: The function descriptions as they are there, for the check of types.
        gold: For each right call its name, and for each argument the values that are right; ""
            among them means that it may be left out. None in irrelevance.
    """

    id: str
    category: Category
    call: Call
    functions: tuple[JSONObject, ...]
    gold: tuple[Gold, ...]

    @property
    def question(self) -> str:
        """The user's words."""
        return "\n".join(m.content for m in self.call.messages if m.role == "user")

    def check(self, reply: Reply) -> bool:
        """Whether the leaderboard's syntax-tree check would call the reply right.

        In irrelevance any reply without a call is right, but for one that begins a call and does
        not end it: that, the leaderboard takes for a refusal.
        """
        if self.category == "irrelevance":
            return not reply.tool_calls and not reply.begins_a_call
        return right_calls(self.functions, reply.tool_calls, self.gold)


def load_bfcl(
    category: Category, path: Path | None = None, limit: int | None = None
) -> tuple[BfclTask, ...]:
    """The tasks of one category, in the leaderboard's order.

    Args:
        category: One of `CATEGORIES`.
        path: A folder with the files, or a wheel of the package; by default the installed
            package. (Its pins clash with most things, so install it with ``--no-deps``.)
        limit: So many, from the beginning; all by default.

    Raises:
        ConfigError: The category is not one of those, or a file is missing or damaged.
        MissingExtraError: No path was given, and the package is not installed.
    """
    if category not in CATEGORIES:
        raise ConfigError(
            f"the BFCL category {category!r} is not read here; choose one of "
            f"{', '.join(CATEGORIES)}"
        )
    source = _Source(path)
    name = f"{_PREFIX}{category}.json"
    questions = source.lines(name)[:limit]
    answers: dict[str, Any] = {}
    if category != "irrelevance":
        answers = {row["id"]: row["ground_truth"] for row in source.lines(_ANSWERS + name)}
    try:
        return tuple(_task(category, row, answers) for row in questions)
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise ConfigError(
            f"{source.place}: {name} is not in the leaderboard's format ({error!r}). Take the "
            f"files of {PACKAGE}."
        ) from error


def _task(category: Category, row: Mapping[str, Any], answers: Mapping[str, Any]) -> BfclTask:
    functions = tuple(row["function"])
    messages = tuple(Message(one["role"], one["content"]) for one in row["question"][0])
    gold: tuple[Gold, ...] = ()
    if category != "irrelevance":
        gold = tuple((name, values) for one in answers[row["id"]] for name, values in one.items())
    return BfclTask(
        id=row["id"],
        category=category,
        call=Call(
            messages,
            tools=tuple(_tool(function) for function in functions),
            tool_choice="auto" if category == "irrelevance" else "any",
            parallel_tool_calls=category == "parallel",
            max_tokens=MAX_TOKENS,
            reasoning="off",
        ),
        functions=functions,
        gold=gold,
    )


def _tool(function: Mapping[str, Any]) -> Tool:
    parameters = schema_of(function["parameters"])
    return Tool(function["name"], function["description"], {**parameters, "type": "object"})


def schema_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's description as JSON schema: other words for types, and no stray keys."""
    out: dict[str, Any] = {}
    for key, value in described.items():
        if key == "type":
            out[key] = _TYPES.get(value, value)
        elif key == "properties":
            out[key] = {name: schema_of(part) for name, part in value.items()}
        elif key == "items":
            out[key] = schema_of(value)
        elif key in ("description", "enum", "required"):
            out[key] = value
    if out.get("type") == "object" and "properties" not in out:
        out["additionalProperties"] = True
    if out.get("type") not in (None, "string") and "enum" in out:
        del out["enum"]  # some are of another type than they say
    return out


class _Source:
    """The leaderboard's data files, wherever they are."""

    def __init__(self, path: Path | None) -> None:
        if path is None:
            spec = find_spec("bfcl_eval")
            if spec is None or not spec.submodule_search_locations:
                raise MissingExtraError(
                    "the questions are in the package bfcl-eval, which is not installed: pip "
                    f"install --no-deps {PACKAGE} (its own dependencies are not needed), or give "
                    "the folder or wheel that holds them."
                )
            path = Path(next(iter(spec.submodule_search_locations)))
        self.place = str(path)
        self._wheel = path if path.suffix == ".whl" else None
        folders = [path, path / "data", path / "bfcl_eval" / "data"]
        self._folder = next((one for one in folders if list(one.glob(f"{_PREFIX}*"))), None)
        if self._folder is None and (self._wheel is None or not path.is_file()):
            raise ConfigError(
                f"{str(path)!r} holds no {_PREFIX}*.json files. Give the folder `data` of "
                f"{PACKAGE}, or its wheel."
            )

    def lines(self, name: str) -> Sequence[Any]:
        """The objects of a file of JSON lines.

        Raises:
            ConfigError: It is missing, or a line is not JSON.
        """
        try:
            if self._folder is not None:
                text = (self._folder / name).read_text(encoding="utf-8")
            else:
                assert self._wheel is not None
                with zipfile.ZipFile(self._wheel) as wheel:
                    text = wheel.read(f"bfcl_eval/data/{name}").decode()
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{self.place}: {name} cannot be read ({error}). Take the files of {PACKAGE}."
            ) from error
