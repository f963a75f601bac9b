"""Files of JSON lines that people write: every error names the file, the line and the cure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tierwise.runtime.errors import ConfigError

Item = TypeVar("Item")


def read_json_lines(
    path: Path, item: str, example: str, make: Callable[[Any, int], Item]
) -> Iterator[Item]:
    """What ``make`` makes of each line, in their order; empty lines do not count.

    Args:
        path: UTF-8 text.
        item: What a line holds, in one word, for errors.
        example: Such a line.
        make: From a line's data and its number, counted from 1; raises ConfigError for what is
            none.

    Raises:
        ConfigError: The file cannot be read, or a line is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the {item}s {str(path)!r} cannot be read: {error}. Give a file of JSON lines in "
            f"UTF-8, one {item} a line."
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield make(json.loads(line), number)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{str(path)!r}, line {number}: not JSON ({error.msg} at column {error.colno}). "
                f"Each line must be one whole {item} such as {example}; mend or remove it."
            ) from error
        except ConfigError as error:
            raise ConfigError(f"{str(path)!r}, line {number}: {error}") from error
