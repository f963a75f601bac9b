"""Texts and regular expressions as Lark grammars write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable


def literal(text: str) -> str:
    """A text that must stand there; nothing where it is empty."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def pattern(text: str) -> str:
    """A regular expression (within Lark's slashes) that matches the text itself."""
    escaped = re.sub(r"[\\.+*?()|\[\]{}^$#&~/-]", r"\\\g<0>", text)
    return escaped.replace("\n", r"\n")


def other_than(texts: Iterable[str]) -> str:
    """Behind a lexeme of Lark: none of these texts."""
    listed = "|".join(map(pattern, texts))
    return f" & ~/(?:{listed})/" if listed else ""


def within_slashes(regex: str) -> str:
    """A user's regular expression as Lark writes one."""
    escaped = re.sub(r"(\\.)|/", lambda found: found.group(1) or r"\/", regex)
    return escaped.replace("\n", r"\n")
