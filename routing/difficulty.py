"""How hard a call looks, from its structure alone, before anything is generated.

No data and no word lists: only counts that cost microseconds. Each of the terms below was
chosen because it multiplies the choices that the model has to get right. The scale is that of
the task suite (0 the easiest, 1 the hardest), so that a tier's success measured by grade can be
read off at any difficulty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from tierwise.runtime.chat import Call, JSONObject
from tierwise.runtime.latest import Latest

GRADE_AT = {"easy": 1 / 6, "medium": 3 / 6, "hard": 5 / 6}
"""Where the suite's grades lie on the scale."""

_NAMED_PARTS = frozenset(("properties", "$defs", "definitions"))
_LISTED_PARTS = frozenset(("items", "prefixItems", "anyOf", "oneOf", "allOf"))


class DifficultyEstimator(Protocol):
    """Anything that judges a call: 0 the easiest, 1 the hardest."""

    def __call__(self, call: Call) -> float: ...


def structural_difficulty(call: Call) -> float:
    """The prior used until a family is calibrated.

    ==========================  =====================================================  ======
    term                        measured as                                            weight
    ==========================  =====================================================  ======
    tools to choose from        log2(1 + tools) / 3, so that 7 tools count as 1         0.30
    arguments to fill           log2(1 + leaves of the widest schema) / 3               0.30
    length of the request       log10(characters of the last user turn / 20) / 2        0.20
    steps so far                tool results since the last user turn / 4               0.10
    trouble so far              failed tool results since the last user turn / 2        0.10
    ==========================  =====================================================  ======

    Each term is cut to 0..1.
    """
    recent = call.since_user
    schemas = tuple(tool.parameters for tool in call.usable_tools)
    if call.response_schema is not None and not call.must_call:
        schemas = (*schemas, call.response_schema)
    request = call.request
    terms = (
        (0.30, math.log2(1 + len(call.usable_tools)) / 3),
        (0.30, math.log2(1 + _widest(schemas)) / 3),
        (0.20, math.log10(max(20, len(request)) / 20) / 2),
        (0.10, sum(m.role == "tool" for m in recent) / 4),
        (0.10, sum(m.tool_failed for m in recent) / 2),
    )
    return sum(weight * min(1.0, value) for weight, value in terms)


def choices(difficulty: float) -> float:
    """Roughly how many tokens the model has to choose rightly in a reply of that difficulty."""
    return 2 + 10 * difficulty


def _leaves(schema: Any) -> int:
    """Values that a reply to this schema has to hold (definitions and choices add up)."""
    if not isinstance(schema, (dict, Mapping)):  # dict first: asking an ABC takes ten times as long
        return 0
    count = 0
    for name, part in schema.items():
        if name in _NAMED_PARTS:
            if isinstance(part, (dict, Mapping)):
                count += sum(map(_leaves, part.values()))
        elif name in _LISTED_PARTS:
            count += sum(map(_leaves, part)) if isinstance(part, list | tuple) else _leaves(part)
    is_value = schema.get("type") not in ("object", "array", None) or "enum" in schema
    return count + (1 if is_value else 0)


def _most_leaves(schemas: tuple[JSONObject, ...]) -> int:
    return max(map(_leaves, schemas), default=0)


_widest = Latest(_most_leaves)
"""Agents offer the same tools call after call."""
