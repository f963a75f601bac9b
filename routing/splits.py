"""Parts of data that share no prompt: to learn, to calibrate, and to test on.

Groups are put in an order by a keyed hash of their names, so that the same seed gives the same
parts on every machine and in whatever order the rows come.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tierwise.runtime.chat import Call
from tierwise.runtime.errors import ConfigError

SHARES = (0.5, 0.25, 0.25)
"""Of the rows: to fit, to calibrate and to test."""

Rows = NDArray[np.intp]
"""Numbers of rows, rising."""

_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of rows; every row is in one part, every group too."""

    fit: Rows
    calibrate: Rows
    test: Rows


def prompt_group(prompt: str | Call) -> str:
    """A name for all prompts that differ in case, white space and numbers alone.

    Of a call, the request is looked at: its last user turn. Copies of a prompt, and one template
    filled with other numbers, must not be learned from and tested on.
    """
    if isinstance(prompt, Call):
        prompt = prompt.request
    plain = " ".join(_DIGITS.sub("0", prompt.casefold()).split())
    return hashlib.blake2b(plain.encode(errors="replace"), digest_size=12).hexdigest()


def split(
    groups: Sequence[str],
    strata: Sequence[Hashable] | None = None,
    *,
    shares: tuple[float, float, float] = SHARES,
    seed: int = 0,
) -> Split:
    """Three parts, each with its share of every stratum as nearly as groups allow.

    Args:
        groups: Of the rows, from `prompt_group`.
        strata: Of the rows (grade, kind, which tiers were right); none by default. A group counts
            for the stratum that most of its rows are of.
        shares: Of the three parts, summing to 1.
        seed: Of the order of the groups.

    Raises:
        ConfigError: Shares that are negative or do not sum to 1, or another number of strata.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ConfigError(f"shares must be at least 0 and sum to 1, got {shares}")
    parts = _parts(groups, strata, shares, seed)
    return Split(*parts)


def folds(
    groups: Sequence[str],
    count: int,
    strata: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> tuple[Rows, ...]:
    """So many parts of about the same size; each is tested on once while the others are fitted.

    Arguments and errors as `split`.

    Raises:
        ConfigError: Fewer than two folds, or fewer groups than folds.
    """
    if count < 2 or len(set(groups)) < count:
        raise ConfigError(
            f"folds need at least 2 and a different prompt for each, got {count} folds of "
            f"{len(set(groups))} different prompts"
        )
    return tuple(_parts(groups, strata, (1 / count,) * count, seed))


def _parts(
    groups: Sequence[str],
    strata: Sequence[Hashable] | None,
    shares: Sequence[float],
    seed: int,
) -> list[Rows]:
    strata = [0] * len(groups) if strata is None else strata
    if len(strata) != len(groups):
        raise ConfigError(f"got {len(groups)} groups but {len(strata)} strata")
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    by_stratum: dict[str, list[str]] = {}
    for group, members in rows.items():
        most = max(
            Counter(repr(strata[row]) for row in members).items(), key=lambda c: (c[1], c[0])
        )
        by_stratum.setdefault(most[0], []).append(group)
    parts: list[list[int]] = [[] for _ in shares]
    overall = np.zeros(len(shares))
    for stratum in sorted(by_stratum):
        taken = np.zeros(len(shares))
        total = sum(len(rows[group]) for group in by_stratum[stratum])
        # Large groups first: small ones then even out what these left uneven.
        order = sorted(by_stratum[stratum], key=lambda g: (-len(rows[g]), _drawn(seed, g)))
        for group in order:
            # The part that lacks most of this stratum; of equals that which lacks most of all.
            lacking = np.asarray(shares) * total - taken
            near = lacking >= lacking.max() - 0.5
            at = int(np.argmax(np.where(near, np.asarray(shares) * len(groups) - overall, -np.inf)))
            parts[at] += rows[group]
            taken[at] += len(rows[group])
            overall[at] += len(rows[group])
    return [np.array(sorted(part), np.intp) for part in parts]


def _drawn(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{group}".encode(errors="replace"), digest_size=8).digest()
