"""Agent tasks whose answers can be checked exactly, and how a run over them is summed up.

A task is one ``Call`` and its gold ``Reply``. Checking compares values, never wording: there
is no judge model and no search for key words in free text.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tierwise.runtime.chat import Call, JSONObject, Reply
from tierwise.runtime.family import Estimate, SuiteResult

SUITE_NAME = "tierwise-tools-3"
"""Name and version of the suite: results compare only under the same name, seed and number."""


def suite_name(menu: int) -> str:
    """Of the suite whose tasks share system message and tools in rows of ``menu``."""
    return SUITE_NAME if menu == 1 else f"{SUITE_NAME}-menu-{menu}"


def menu_of(suite: str) -> int:
    """The ``menu`` of a `suite_name`; 1 for names that say nothing of it."""
    rows = suite.removeprefix(f"{SUITE_NAME}-menu-")
    return int(rows) if rows != suite and rows.isdigit() else 1


Grade = Literal["easy", "medium", "hard"]
GRADES: tuple[Grade, ...] = ("easy", "medium", "hard")

Kind = Literal["choose_tool", "fill_arguments", "answer_in_schema", "no_tool_fits"]
KINDS: tuple[Kind, ...] = ("choose_tool", "fill_arguments", "answer_in_schema", "no_tool_fits")

_Z95 = 1.959964
"""The 97.5 % point of the standard normal distribution."""


class Checkable(Protocol):
    """What `tierwise.evaluation.success.run_suite` can run: a call whose reply can be checked."""

    @property
    def id(self) -> str:
        """Stable and unique within one suite."""

    @property
    def call(self) -> Call:
        """What the model sees."""

    def check(self, reply: Reply) -> bool:
        """Whether the reply is right. Never raises, however bad the reply is."""


@dataclass(frozen=True, slots=True)
class Task:
    """One call with its gold reply.

    Args:
        id: Stable and unique within one generated suite, e.g. "fill_arguments-hard-0017".
        grade: How many tools and arguments there are, and how alike the tools are.
        kind: What is asked of the model.
        call: What the model sees.
        expected: A right answer. Of ``no_tool_fits``, one of many.
    """

    id: str
    grade: Grade
    kind: Kind
    call: Call
    expected: Reply

    def check(self, reply: Reply) -> bool:
        """Whether the reply is right. Never raises, however bad the reply is.

        ``choose_tool`` and ``fill_arguments``: exactly one tool call, with the gold name and
        arguments. ``answer_in_schema``: the whole text is JSON and holds the gold values.
        ``no_tool_fits``: some text and no tool call; what the text says is not judged.

        Values are compared by ``same_value``.
        """
        if self.kind == "no_tool_fits":
            return not reply.tool_calls and not reply.begins_a_call and bool(reply.text.strip())
        if self.kind == "answer_in_schema":
            return not reply.tool_calls and self._right_json(reply.text)
        return len(reply.tool_calls) == 1 and self._right_call(reply)

    def _right_json(self, text: str) -> bool:
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):  # not JSON, or nested thousands deep
            return False
        return same_value(json.loads(self.expected.text), given, self.call.response_schema or {})

    def _right_call(self, reply: Reply) -> bool:
        gold, given = self.expected.tool_calls[0], reply.tool_calls[0]
        if given.name != gold.name:
            return False
        schema = next(tool.parameters for tool in self.call.tools if tool.name == gold.name)
        return same_value(gold.arguments, given.arguments, schema)


def same_value(gold: Any, given: Any, schema: JSONObject) -> bool:
    """Whether two JSON values mean the same, after light normalisation.

    Strings: as `plain_text`. Numbers: as `same_number`; booleans: exact, and no number is one.
    Arrays: in order. Objects: the same properties; one that is absent has the schema's
    ``default`` for it, if there is one.

    Args:
        gold: The right value.
        given: Any value, possibly of another type.
        schema: JSON schema of the gold; only ``properties``, ``items``, ``default`` are read.
    """
    if isinstance(gold, Mapping):
        return isinstance(given, Mapping) and _same_object(gold, given, schema)
    if isinstance(gold, list | tuple):
        items = _schema(schema.get("items"))
        return (
            isinstance(given, list | tuple)
            and len(given) == len(gold)
            and all(same_value(a, b, items) for a, b in zip(gold, given, strict=True))
        )
    if isinstance(gold, str):
        return isinstance(given, str) and plain_text(gold) == plain_text(given)
    if gold is None or isinstance(gold, bool):
        return given is gold
    return isinstance(given, int | float) and same_number(gold, given)


def _same_object(gold: Mapping[str, Any], given: Mapping[str, Any], schema: JSONObject) -> bool:
    properties = _schema(schema.get("properties"))
    for name in gold.keys() | given.keys():
        of_name = _schema(properties.get(name))
        if not (name in gold and name in given) and "default" not in of_name:
            return False
        right, said = (one[name] if name in one else of_name["default"] for one in (gold, given))
        if not same_value(right, said, of_name):
            return False
    return True


def _schema(found: Any) -> JSONObject:
    """A part of a schema; ``true``, lists of schemas and the like say nothing here."""
    return found if isinstance(found, Mapping) else {}


def same_number(gold: float, given: float) -> bool:
    """Whole numbers must be equal, as they may be identifiers (3 equals 3.0); others within 1e-6
    relative."""
    if isinstance(given, bool):
        return False
    if _is_whole(gold) and _is_whole(given):
        return gold == given
    try:
        return math.isclose(gold, given, rel_tol=1e-6)
    except OverflowError:  # an integer beyond the largest float
        return False


def _is_whole(number: float) -> bool:
    return isinstance(number, int) or number.is_integer()


def one_form(text: str) -> str:
    """The text in one case and one Unicode form, single-spaced."""
    plain = unicodedata.normalize("NFC", text).replace("\N{MINUS SIGN}", "-").casefold()
    return " ".join(plain.split())


def plain_text(text: str) -> str:
    """`one_form` of the text, without punctuation at its ends.

    Punctuation that says something stays: "-5", ".5" and "/etc" are not "5" and "etc", "C#" is not
    "C" and "50%" not "50". So does a text that has nothing else.
    """
    words = one_form(text)
    start, end = 0, len(words)
    while start < end and _strippable(words[start]):
        start += 1
    while end > start and _strippable(words[end - 1]):
        end -= 1
    if start == end:
        return words
    if start > 0 and words[start - 1] in "-./\\":
        start -= 1
    if end < len(words) and words[end] in "#%":
        end += 1
    return words[start:end]


def _strippable(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def wilson_interval(successes: int, n: int) -> Estimate:
    """A share with its 95 % score interval (E. B. Wilson, JASA 22, 1927).

    Args:
        successes: How many of the samples succeeded, 0 to ``n``.
        n: Samples. With none the share is unknown: value 0, interval 0 to 1.

    Raises:
        ValueError: ``successes`` is not in 0..``n``.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..n, got {successes} of {n}")
    if n == 0:
        return Estimate(value=0.0, n=0, low=0.0, high=1.0)
    share = successes / n
    scale = 1 + _Z95**2 / n
    middle = (share + _Z95**2 / (2 * n)) / scale
    half = _Z95 / scale * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2))
    # At 0 and n successes one end is the share itself, but for rounding.
    return Estimate(
        value=share,
        n=n,
        low=0.0 if successes == 0 else middle - half,
        high=1.0 if successes == n else middle + half,
    )


def summarize(
    tasks: Sequence[Task], passed: Sequence[bool], *, suite: str, seed: int
) -> SuiteResult:
    """Success overall, by grade and by kind; grades and kinds without a task are left out.

    Args:
        tasks: What was run.
        passed: Whether each task's reply was right, in the same order.
        suite: Usually ``SUITE_NAME``.
        seed: The one that the tasks were generated with.

    Raises:
        ValueError: The two sequences differ in length.
    """
    if len(tasks) != len(passed):
        raise ValueError(f"got {len(tasks)} tasks but {len(passed)} results")
    results = list(zip(tasks, passed, strict=True))
    by_grade = {grade: [ok for task, ok in results if task.grade == grade] for grade in GRADES}
    by_kind = {kind: [ok for task, ok in results if task.kind == kind] for kind in KINDS}
    return SuiteResult(
        suite=suite,
        seed=seed,
        overall=wilson_interval(sum(passed), len(passed)),
        by_grade={name: wilson_interval(sum(ok), len(ok)) for name, ok in by_grade.items() if ok},
        by_kind={name: wilson_interval(sum(ok), len(ok)) for name, ok in by_kind.items() if ok},
    )
