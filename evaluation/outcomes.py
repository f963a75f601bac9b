"""What each tier made of each task: right or wrong, how long it took, and how sure it was.

Kept in one SQLite file beside the family, so that a run that was killed goes on and a tier that
was added is the only one that must be run. A tier is known by its file's hash: one that was
changed has no outcomes.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from tierwise.runtime.errors import CalibrationError, ConfigError, DiskFullError, MissingExtraError

OUTCOMES = "outcomes.sqlite"
"""Name of the file in the family's folder."""

SCHEMA_VERSION = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS tasks (
    suite TEXT NOT NULL, task TEXT NOT NULL, grouped TEXT NOT NULL, call TEXT NOT NULL,
    PRIMARY KEY (suite, task)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes (
    suite TEXT NOT NULL, task TEXT NOT NULL, tier TEXT NOT NULL, passed INTEGER NOT NULL,
    seconds REAL, joules REAL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, forced_tokens INTEGER NOT NULL, margins TEXT NOT NULL,
    reply TEXT NOT NULL,
    PRIMARY KEY (suite, task, tier)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class TierOutcome:
    """One tier's reply to one task.

    Args:
        suite, task: The task's; `KnownTask` has its call.
        tier: The sha256 of the tier's file; of a remote tier, of its url and model.
        passed: Whether the reply was right.
        seconds: Of the call, where it ran alone or on another machine; None where others ran at
            the same time.
        joules: Of the call, where the machine can say; else None.
        prompt_tokens, cached_tokens, completion_tokens, forced_tokens: As in `Usage`.
        margins: As in `Reply`.
        reply: As `message_json.reply_to_json` writes it.
    """

    suite: str
    task: str
    tier: str
    passed: bool
    seconds: float | None
    joules: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    forced_tokens: int
    margins: tuple[float, ...]
    reply: dict[str, Any]


@dataclass(frozen=True, slots=True)
class KnownTask:
    """One task of a suite.

    Args:
        suite, task: Together unique.
        group: Tasks of one group are alike and must not be parted between fit and test.
        call: What the model saw, as `message_json.call_to_json` writes it.
    """

    suite: str
    task: str
    group: str
    call: dict[str, Any]


COLUMNS = tuple(field.name for field in fields(TierOutcome))


class OutcomeStore:
    """The outcomes of one family.

    Args:
        path: The SQLite file; made where it is missing.

    Raises:
        CalibrationError: The file is damaged, or of a newer version of Tierwise.
        DiskFullError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as opening:
            try:
                self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
                opening.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode=WAL")
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version > SCHEMA_VERSION:
                    raise CalibrationError(
                        f"{str(path)!r} was written by a newer Tierwise (version {version} of its "
                        f"tables, {SCHEMA_VERSION} are known). Update Tierwise."
                    )
                self._db.executescript(_TABLES)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            except sqlite3.DatabaseError as error:
                raise _told(error, path) from error
            opening.pop_all()

    def add(self, tasks: Iterable[KnownTask], outcomes: Iterable[TierOutcome]) -> None:
        """Writes all of them or none; what is there already is replaced.

        Raises:
            DiskFullError: There is no room; nothing was written.
        """
        with self._written():
            self._db.executemany(
                "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?)",
                ((t.suite, t.task, t.group, json.dumps(t.call)) for t in tasks),
            )
            self._db.executemany(
                f"INSERT OR REPLACE INTO outcomes VALUES ({', '.join('?' * len(COLUMNS))})",
                (_row(outcome) for outcome in outcomes),
            )

    def known(self, suite: str, tier: str) -> set[str]:
        """Ids of the suite's tasks that the tier has answered."""
        rows = self._db.execute(
            "SELECT task FROM outcomes WHERE suite = ? AND tier = ?", (suite, tier)
        )
        return {task for (task,) in rows}

    def reply(self, suite: str, task: str, tier: str) -> dict[str, Any] | None:
        """What a tier replied; None if it was not asked."""
        row = self._db.execute(
            "SELECT reply FROM outcomes WHERE suite = ? AND task = ? AND tier = ?",
            (suite, task, tier),
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def tasks(self) -> tuple[KnownTask, ...]:
        """All tasks, in a fixed order."""
        rows = self._db.execute("SELECT * FROM tasks ORDER BY suite, task")
        return tuple(
            KnownTask(suite, task, group, json.loads(call)) for suite, task, group, call in rows
        )

    def outcomes(
        self, tiers: Sequence[str] = (), suite: str | None = None
    ) -> Iterator[TierOutcome]:
        """All outcomes, in a fixed order; of these tiers or this suite alone, where named."""
        conditions, values = ["TRUE"], [*tiers]
        if tiers:
            conditions.append(f"tier IN ({', '.join('?' * len(tiers))})")
        if suite is not None:
            conditions.append("suite = ?")
            values.append(suite)
        rows = self._db.execute(
            f"SELECT * FROM outcomes WHERE {' AND '.join(conditions)} ORDER BY suite, task, tier",
            values,
        )
        yield from map(_outcome, rows)

    def export(self, path: Path) -> int:
        """Writes a table of all outcomes with their groups; returns how many.

        Args:
            path: ``.csv``, or ``.parquet`` (needs pyarrow).

        Raises:
            ConfigError, MissingExtraError: As of `check_export`.
        """
        check_export(path)
        groups = {(task.suite, task.task): task.group for task in self.tasks()}
        rows = []
        for outcome in self.outcomes():
            row = {name: getattr(outcome, name) for name in COLUMNS}
            row["margins"] = json.dumps(outcome.margins)
            row["reply"] = json.dumps(outcome.reply, ensure_ascii=False)
            rows.append({"group": groups[outcome.suite, outcome.task], **row})
        if path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["group", *COLUMNS])
                writer.writeheader()
                writer.writerows(rows)
        else:
            _write_parquet(rows, path)
        return len(rows)

    def close(self) -> None:
        """Safe to call twice."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            raise _told(error, self.path) from error


def _row(outcome: TierOutcome) -> tuple[Any, ...]:
    values = [getattr(outcome, name) for name in COLUMNS]
    values[COLUMNS.index("margins")] = json.dumps([round(one, 5) for one in outcome.margins])
    values[COLUMNS.index("passed")] = int(outcome.passed)
    values[COLUMNS.index("reply")] = json.dumps(outcome.reply, ensure_ascii=False)
    return tuple(values)


def _outcome(row: Sequence[Any]) -> TierOutcome:
    values = dict(zip(COLUMNS, row, strict=True))
    values["margins"] = tuple(json.loads(values["margins"]))
    values["passed"] = bool(values["passed"])
    values["reply"] = json.loads(values["reply"])
    return TierOutcome(**values)


def _told(error: sqlite3.DatabaseError, path: Path) -> CalibrationError | DiskFullError:
    text = str(error)
    if "full" in text or "unable to open" in text or "readonly" in text:
        cure = "Make room" if "full" in text else "Make it writable, or copy the family"
        return DiskFullError(f"{str(path)!r} cannot be written: {text}. {cure}, then go on.")
    return CalibrationError(
        f"{str(path)!r} is no usable file of outcomes: {text}. Remove it; calibrating again makes "
        "it anew."
    )


def check_export(path: Path) -> None:
    """Whether outcomes can be written there, before anybody is asked for them.

    Raises:
        ConfigError: Another ending than ``.csv`` and ``.parquet``, or there is no such folder.
        MissingExtraError: pyarrow is missing.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(
            f"outcomes cannot be written to {str(path)!r}: name a .csv or a .parquet file"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"outcomes cannot be written to {str(path)!r}: there is no such folder")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError(
            "Parquet files are written with pyarrow, which is not installed: pip install pyarrow, "
            "or name a .csv file."
        )


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import pyarrow.parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


__all__ = ["COLUMNS", "OUTCOMES", "KnownTask", "OutcomeStore", "TierOutcome", "check_export"]
