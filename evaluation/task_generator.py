"""Makes tasks from the catalogue: draws values, fills phrasings, and picks what tools to offer."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tierwise.evaluation.tasks import GRADES, KINDS, Grade, Kind, Task
from tierwise.evaluation.tool_catalog import CATALOGS, Split
from tierwise.evaluation.tool_patterns import Catalog, Domain, Pattern
from tierwise.evaluation.tool_slots import Drawn, Slot, draw_slots, object_schema, slot_names
from tierwise.runtime.chat import Call, JSONObject, Message, Reply, Tool, ToolCall

MAX_TOKENS = 256
"""Longest reply to a task; gold replies have at most some 230 characters. Without a limit, a
weak tier that rambles where no tool fits would fill its whole context."""

MENU_TOKENS = 40
"""The same where no tool fits and tasks share a menu: whether it answers in words shows at once,
and rambling would take most of the time."""

_TOOLS_OFFERED: Mapping[Kind, Mapping[Grade, tuple[int, ...]]] = {
    "choose_tool": {"easy": (2,), "medium": (3, 4), "hard": (6, 7, 8)},
    "fill_arguments": {"easy": (1,), "medium": (1, 2), "hard": (3, 4)},
    "no_tool_fits": {"easy": (1, 2), "medium": (3, 4), "hard": (6, 7, 8)},
}
_SIBLINGS: Mapping[Grade, int] = {"easy": 0, "medium": 1, "hard": 3}
"""How many of the offered tools are from the domain of the right one."""

_DRAWS_FOR_NEW_TEXT = 50


def generate_tasks(
    n: int, *, seed: int = 0, split: Split = "test", menu: int = 1
) -> tuple[Task, ...]:
    """Tasks of all kinds and grades in turn, so that every beginning of them is balanced.

    The same arguments always give the same tasks, and fewer tasks are the beginning of more.
    User messages differ from each other up to several hundred tasks; beyond that, the smallest
    pools begin to repeat.

    Args:
        n: How many tasks.
        seed: Of all draws.
        split: "test" to measure with; "calibration" for text that compression may learn from.
            The two share no user message, tool, phrasing or name.
        menu: So many tasks in a row are asked of one system message and one list of tools, as an
            agent's calls are: a tier that keeps prefixes reads a third of the text. Then the
            grade is in the request alone, and successes hang together; 1 for lists of their own.

    Raises:
        ValueError: ``n`` is negative, or ``menu`` is less than 1.
    """
    if n < 0 or menu < 1:
        raise ValueError(f"n must be 0 or more and menu 1 or more, got {n} and {menu}")
    rng = random.Random(f"tierwise-{split}-{seed}" if menu == 1 else f"menu-{menu}-{split}-{seed}")
    whole = CATALOGS[split]
    seen: set[str] = set()
    tasks = []
    catalog, system = whole, ""
    for index in range(n):
        if menu > 1 and index % menu == 0:
            catalog, system = replace(whole, menu=_menu(whole, rng)), rng.choice(whole.systems)
        # 4 kinds and 3 grades have no common divisor, so the 12 pairs all come in turn.
        kind, grade = KINDS[index % len(KINDS)], GRADES[index % len(GRADES)]
        draft = _new_draft(catalog, kind, grade, rng, seen)
        number = index // (len(KINDS) * len(GRADES))
        if menu == 1:
            system = rng.choice(catalog.systems)
        tasks.append(
            Task(
                id=f"{kind}-{grade}-{number:04}",
                grade=grade,
                kind=kind,
                call=draft.to_call(system),
                expected=draft.expected,
            )
        )
    return tuple(tasks)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A task before its system message and id."""

    request: str
    expected: Reply
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    response_schema: JSONObject | None = None
    max_tokens: int = MAX_TOKENS

    def to_call(self, system: str) -> Call:
        before = (Message("system", system),) if system else ()
        return Call(
            messages=(*before, Message("user", self.request)),
            tools=self.tools,
            tool_choice=self.tool_choice,
            response_schema=self.response_schema,
            max_tokens=self.max_tokens,
            reasoning="off",  # which takes many times the tokens of an answer
        )


def _new_draft(
    catalog: Catalog, kind: Kind, grade: Grade, rng: random.Random, seen: set[str]
) -> _Draft:
    """A draft whose request was not seen, as far as some tries can find one; it is now seen."""
    make = _MAKERS[kind]
    draft = make(catalog, grade, rng)
    for _ in range(_DRAWS_FOR_NEW_TEXT):
        if draft.request not in seen:
            break
        draft = make(catalog, grade, rng)
    seen.add(draft.request)
    return draft


# --- One maker for each kind -------------------------------------------------------------------


def _choose_tool(catalog: Catalog, grade: Grade, rng: random.Random) -> _Draft:
    """Few arguments even at grade hard: there, what is hard is to tell the tools apart."""
    domain, pattern, phrasing = _pick_tool(catalog, "easy" if grade == "easy" else "medium", rng)
    request, arguments = _fill(pattern.slots, phrasing, rng, grade)
    return _Draft(
        request=_wrap(catalog, request, rng),
        expected=_calling(pattern, arguments),
        tools=_offer(catalog, domain, pattern, "choose_tool", grade, rng),
        tool_choice="any",
    )


def _fill_arguments(catalog: Catalog, grade: Grade, rng: random.Random) -> _Draft:
    domain, pattern, phrasing = _pick_tool(catalog, grade, rng)
    request, arguments = _fill(pattern.slots, phrasing, rng, grade)
    return _Draft(
        request=_wrap(catalog, request, rng),
        expected=_calling(pattern, arguments),
        tools=_offer(catalog, domain, pattern, "fill_arguments", grade, rng),
        tool_choice=rng.choice(("any", pattern.name)),
    )


def _answer_in_schema(catalog: Catalog, grade: Grade, rng: random.Random) -> _Draft:
    form = rng.choice(catalog.forms)
    phrasing = rng.choice(form.phrasings(grade))
    text, fields = _fill(form.slots, phrasing, rng, grade)
    schema = object_schema(_form_slots(form, slot_names(phrasing), grade))
    instruction = rng.choice(catalog.instructions).format(name=form.name)
    return _Draft(
        request=instruction + text,
        expected=Reply(text=json.dumps(fields, ensure_ascii=False)),
        response_schema={"title": form.name, "description": form.description, **schema},
    )


def _no_tool_fits(catalog: Catalog, grade: Grade, rng: random.Random) -> _Draft:
    """Easy: talk. Medium: a request whose tool is not offered. Hard: all tools of the request's
    domain are offered, and none can serve it."""
    domain: Domain | None = None
    if grade == "easy":
        request, answer = _talk(catalog, rng)
    elif grade == "medium":
        domain, pattern, phrasing = _pick_tool(catalog, grade, rng, offered=False)
        request = _wrap(catalog, _fill(pattern.slots, phrasing, rng, grade)[0], rng)
        answer = _refusal(catalog, pattern.description, rng)
    else:
        domain = rng.choice(_domains(catalog, offered=True))
        template, what = rng.choice(domain.beyond)
        names = {name: rng.choice(catalog.names[name]) for name in slot_names(template)}
        request = _wrap(catalog, template.format(**names), rng)
        answer = _refusal(catalog, what, rng)
    return _Draft(
        request=request,
        expected=Reply(text=answer),
        tools=_offer(catalog, domain, None, "no_tool_fits", grade, rng),
        max_tokens=MENU_TOKENS if catalog.menu else MAX_TOKENS,
    )


_MAKERS = {
    "choose_tool": _choose_tool,
    "fill_arguments": _fill_arguments,
    "answer_in_schema": _answer_in_schema,
    "no_tool_fits": _no_tool_fits,
}


# --- Parts -------------------------------------------------------------------------------------


def _menu(catalog: Catalog, rng: random.Random) -> tuple[Pattern, ...]:
    """Two tools of each of two domains, so that every tool has a sibling and strangers."""
    domains = rng.sample(catalog.domains, 2)
    offered = [tool for domain in domains for tool in rng.sample(domain.tools, 2)]
    return tuple(rng.sample(offered, len(offered)))


def _domains(catalog: Catalog, *, offered: bool) -> list[Domain]:
    """Those that the menu has tools of, or the others; all of them where there is no menu."""
    if not catalog.menu:
        return list(catalog.domains)
    return [one for one in catalog.domains if offered == any(t in catalog.menu for t in one.tools)]


def _pick_tool(
    catalog: Catalog, grade: Grade, rng: random.Random, *, offered: bool = True
) -> tuple[Domain, Pattern, str]:
    """A domain, one of its tools, and a phrasing of that grade for it.

    Args:
        offered: Whether the tool is on the menu, where there is one.
    """
    domain = rng.choice(_domains(catalog, offered=offered))
    tools = [tool for tool in domain.tools if tool.phrasings(grade)]
    if catalog.menu and offered:
        tools = [tool for tool in tools if tool in catalog.menu]
    pattern = rng.choice(tools)
    return domain, pattern, rng.choice(pattern.phrasings(grade))


def _fill(
    slots: Mapping[str, Slot], phrasing: str, rng: random.Random, grade: Grade
) -> tuple[str, dict[str, Any]]:
    """The phrasing with values said in it, and the values, in the order of the schema."""
    drawn: Mapping[str, Drawn] = draw_slots(slots, slot_names(phrasing), rng, grade)
    said = phrasing.format(**{name: one.said for name, one in drawn.items()})
    return said, {name: one.value for name, one in drawn.items()}


def _form_slots(form: Pattern, named: Sequence[str], grade: Grade) -> dict[str, Slot]:
    """The fields of a schema: those in the text; if hard, also optional ones that are not."""
    if grade == "hard":
        return {name: s for name, s in form.slots.items() if name in named or s.optional}
    return {name: replace(s, optional=False) for name, s in form.slots.items() if name in named}


def _offer(
    catalog: Catalog,
    domain: Domain | None,
    target: Pattern | None,
    kind: Kind,
    grade: Grade,
    rng: random.Random,
) -> tuple[Tool, ...]:
    """The tools of a call, in random order: the right one, some siblings, and others.

    Where no tool fits, a hard call offers the whole domain, a medium one nothing of it. Where
    there is a menu, that is what is offered.
    """
    if catalog.menu:
        return tuple(pattern.tool for pattern in catalog.menu)
    siblings: list[Pattern] = []
    if domain is not None and target is not None:
        others = [tool for tool in domain.tools if tool is not target]
        siblings = rng.sample(others, min(_SIBLINGS[grade], len(others)))
    elif domain is not None and grade == "hard":
        siblings = list(domain.tools)
    count = rng.choice(_TOOLS_OFFERED[kind][grade])
    offered = ([target] if target else []) + siblings
    strangers = [tool for other in catalog.domains if other is not domain for tool in other.tools]
    offered = offered[:count] + rng.sample(strangers, max(0, count - len(offered)))
    return tuple(pattern.tool for pattern in rng.sample(offered, len(offered)))


def _calling(pattern: Pattern, arguments: Mapping[str, Any]) -> Reply:
    call = ToolCall(pattern.name, arguments)
    return Reply(tool_calls=(call,), finish_reason="tool_calls")


def _wrap(catalog: Catalog, request: str, rng: random.Random) -> str:
    return rng.choice(catalog.openings) + request + rng.choice(catalog.endings)


def _talk(catalog: Catalog, rng: random.Random) -> tuple[str, str]:
    """A question and its answer; each pair of question and row is equally likely."""
    filled = []
    for talk in catalog.talks:
        columns = dict.fromkeys(slot_names(talk.questions[0] + talk.answer))
        for row in talk.rows:
            values = dict(zip(columns, row, strict=True))
            answer = talk.answer.format(**values)
            answer = answer[:1].upper() + answer[1:]
            filled += [(question.format(**values), answer) for question in talk.questions]
    return rng.choice(filled)


def _refusal(catalog: Catalog, what: str, rng: random.Random) -> str:
    """Says that something cannot be done. ``what`` may be a tool's description."""
    plain = what[:1].lower() + what[1:].rstrip(".")
    return rng.choice(catalog.refusals).format(what=plain)
