"""Values as people write them, and what to say when they make no sense."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from tierwise.runtime.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_bytes(value: object) -> object:
    """Turns "2GiB", "500 MB" or a number into bytes.

    Raises:
        ConfigError: The text is no size.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", value, re.ASCII)
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"{value!r} is not a size; write for example 2GiB, 500MB or 1000000")
    return int(float(match[1]) * _UNITS[match[2].upper()])


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


def show_bytes(count: float) -> str:
    """For people: "92 MB", "1.4 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def first_problem(error: ValidationError, what: str) -> str:
    """One sentence from pydantic's many: which field, the value given, and why it will not do."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return (
        f"{what} {where!r} cannot be {first['input']!r}: {reason}" if where else f"{what}: {reason}"
    )
