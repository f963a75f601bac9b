"""A log of decisions and what came of them, in SQLite. Writing it never holds up or fails a call.

Prompts are not in it, only their hashes and the numbers that were decided by; the text is kept
where the user asks for it (it is what `tierwise learn` teaches with). Rows are written by a
thread of its own: where the file is locked or the disk is full they are dropped and counted.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import queue
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tierwise.routing.answer import Answer
from tierwise.runtime.chat import Call
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.message_json import call_to_json, reply_to_json

log = logging.getLogger("tierwise.routing")

MOST_WAITING = 4096
"""Rows that wait to be written; beyond that, new ones are dropped."""

BUSY_S = 5.0
"""How long to wait for a file that another process writes."""

SCHEMA_VERSION = 2
"""Goes up whenever what a row holds has another shape."""

_TABLES = """
CREATE TABLE IF NOT EXISTS decisions (
    id TEXT PRIMARY KEY, at REAL NOT NULL, prompt_sha256 TEXT NOT NULL, tier TEXT NOT NULL,
    answer TEXT NOT NULL, call TEXT, reply TEXT, feedback INTEGER
);
"""


@dataclass(frozen=True, slots=True)
class Logged:
    """One row.

    Args:
        id: Of the decision; feedback names it.
        at: Unix time.
        prompt_sha256: Of the prompt's tokens.
        tier: That gave the reply which stands.
        answer: As `Answer.to_json`.
        call, reply: As in `message_json`; None unless text is kept.
        feedback: What the user said of the reply; None for nothing.
    """

    id: str
    at: float
    prompt_sha256: str
    tier: str
    answer: dict[str, Any]
    call: dict[str, Any] | None
    reply: dict[str, Any] | None
    feedback: bool | None


class DecisionLog:
    """Appends to one file. Safe to use from many threads, and from several processes.

    What waits is written at the end of the process too, and when a log is let go unclosed.

    Args:
        path: The SQLite file; made at the first row.
        text: Whether calls and replies are kept as they are.
    """

    def __init__(self, path: Path, *, text: bool = False) -> None:
        self.path, self.text = path, text
        self._writer = _Writer(path)
        # A log may be let go in any thread, the writer's too: nothing is waited for there.
        weakref.finalize(self, self._writer.end).atexit = False

    @property
    def dropped(self) -> int:
        """Rows that could not be written."""
        return self._writer.dropped

    def add(self, call: Call, answer: Answer) -> None:
        """Takes note of an answer. Never waits or raises."""
        decision = answer.final.decision
        prompt = b"".join(token.to_bytes(4, "little") for token in decision.prompt)
        # What is not JSON in a call (bytes of a picture, say) is told as text.
        kept = (
            [json.dumps(call_to_json(call), default=str), json.dumps(reply_to_json(answer.reply))]
            if self.text
            else [None, None]
        )
        self._writer.put(
            "INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            (
                answer.id,
                time.time(),
                hashlib.sha256(prompt).hexdigest(),
                decision.tier,
                json.dumps(answer.to_json(first=True)),
                *kept,
            ),
        )

    def feedback(self, row_id: str, ok: bool) -> None:
        """Whether the reply was right. Never waits or raises."""
        self._writer.put("UPDATE decisions SET feedback = ? WHERE id = ?", (int(ok), row_id))

    def close(self) -> None:
        """Writes what waits. Safe to call twice."""
        self._writer.end()
        self._writer.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Writer:
    """The thread that writes, which does not hold the log that it writes for."""

    def __init__(self, path: Path) -> None:
        self.dropped = 0
        self._path = path
        self._queue: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        # A log may be let go at any allocation, so also in a thread that holds it.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._over = False

    def put(self, statement: str, values: tuple[Any, ...]) -> None:
        with self._lock:
            if self._over or self._queue.qsize() >= MOST_WAITING:
                slow = "rows come faster than they can be written"
                self.drop(1, "the log was closed" if self._over else slow)
                return
            self._queue.put((statement, values))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write, name="tierwise-decision-log", daemon=True
                )
                _writers.add(self)
                self._thread.start()

    def drop(self, rows: int, why: str) -> None:
        if self.dropped == 0:
            log.warning("the decision log %s loses rows: %s", self._path, why)
        self.dropped += rows

    def end(self) -> None:
        """Has the thread stop once all is written. Safe to call twice."""
        with self._lock:
            self._over = True
            self._queue.put(None)

    def wait(self) -> None:
        """Until the thread has stopped."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _write(self) -> None:
        """Writes in batches until None comes."""
        over = False
        while not over:
            batch = [self._queue.get()]
            while not self._queue.empty() and len(batch) < 256:
                batch.append(self._queue.get_nowait())
            rows = [one for one in batch if one is not None]
            over = len(rows) < len(batch)
            if not rows:
                continue
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with closing(_opened(self._path)) as db, db:
                    for statement, values in rows:
                        db.execute(statement, values)
            except (sqlite3.Error, OSError) as error:
                self.drop(len(rows), str(error))
        _writers.discard(self)


_writers: set[_Writer] = set()
"""Those whose threads run."""


@atexit.register
def _write_all() -> None:
    """Threads that are daemons would be stopped in the middle."""
    for writer in list(_writers):
        writer.end()
        writer.wait()


def read_log(path: Path) -> Iterator[Logged]:
    """The rows of a log, oldest first.

    Raises:
        ConfigError: There is no such file, or it is no log.
    """
    if not path.is_file():
        raise ConfigError(f"there is no decision log {str(path)!r}; check the path")
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S)) as db:
            _check_version(db)
            rows = db.execute(
                "SELECT id, at, prompt_sha256, tier, answer, call, reply, feedback FROM decisions "
                "ORDER BY at, id"
            )
            for row_id, at, prompt, tier, answer, call, reply, feedback in rows:
                yield Logged(
                    row_id,
                    at,
                    prompt,
                    tier,
                    json.loads(answer),
                    None if call is None else json.loads(call),
                    None if reply is None else json.loads(reply),
                    None if feedback is None else bool(feedback),
                )
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{str(path)!r} is no decision log that can be read ({error}). Name the file that was "
            "given as decision_log."
        ) from error


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S)
    try:
        _check_version(db)
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(_TABLES)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _check_version(db: sqlite3.Connection) -> None:
    """Raises DatabaseError where another version of Tierwise wrote a file."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, SCHEMA_VERSION):  # 0 is a new file
        raise sqlite3.DatabaseError(
            f"its rows are of version {version}, and this Tierwise writes and reads version "
            f"{SCHEMA_VERSION}; name a new file to go on logging"
        )
