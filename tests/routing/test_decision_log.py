"""Decisions are logged without their text, and whatever happens to the file no call notices."""

from __future__ import annotations

import gc
import json
import sqlite3
import subprocess
import sys
import threading
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tierwise.routing import decision_log
from tierwise.routing.answer import Answer, Attempt
from tierwise.routing.budget import Budget
from tierwise.routing.decision import Decision, Forecast
from tierwise.routing.decision_log import DecisionLog, read_log
from tierwise.routing.replay import replay
from tierwise.runtime.chat import Call, Message, Reply
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.message_json import call_to_json, reply_to_json

CALL = Call((Message("user", "my secret"),))


def forecast(tier: str, success: float, seconds: float, memory: int = 100) -> Forecast:
    return Forecast(
        tier=tier,
        success=success,
        seconds=seconds,
        first_token_s=seconds / 2,
        joules=seconds * 12,
        memory_bytes=memory,
        new_tokens=5,
        cold=False,
        feasible=bool(memory),
        verdict="" if memory else "out of reach",
    )


FORECASTS = (forecast("small", 0.6, 1.0, 100), forecast("large", 0.9, 3.0, 400))


def answered(tier: str = "large", forecasts: tuple[Forecast, ...] = FORECASTS) -> Answer:
    decision = Decision(tier, "because", 0.5, 3, forecasts, prompt=(1, 2, 3))
    attempt = Attempt(decision, Reply("also secret"), 0.5, "")
    return Answer((attempt,), uuid.uuid4().hex)


def test_rows_hold_numbers_and_hashes_but_no_text(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.sqlite"
    with DecisionLog(path) as log:
        first, second = answered(), answered("small")
        log.add(CALL, first)
        log.add(CALL, second)
        log.feedback(first.id, ok=True)
        log.feedback(second.id, ok=False)
    rows = list(read_log(path))
    assert [row.id for row in rows] == [first.id, second.id]
    assert [(row.tier, row.feedback) for row in rows] == [("large", True), ("small", False)]
    assert rows[0].prompt_sha256 == rows[1].prompt_sha256 and rows[0].call is None
    assert rows[0].answer == json.loads(json.dumps(first.to_json()))
    assert all(b"secret" not in file.read_bytes() for file in path.parent.iterdir())
    assert log.dropped == 0


def test_text_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    with DecisionLog(tmp_path / "log", text=True) as log:
        log.add(CALL, answered())
    (row,) = read_log(tmp_path / "log")
    assert row.call == call_to_json(CALL) and row.reply == reply_to_json(Reply("also secret"))


def test_a_log_of_another_version_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    with DecisionLog(path) as log:
        log.add(CALL, answered())
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=1")
    with DecisionLog(path) as log:
        log.add(CALL, answered())
    assert log.dropped == 1 and "of version 1" in caplog.text and "a new file" in caplog.text
    with pytest.raises(ConfigError, match="of version 1, and this Tierwise"):
        list(read_log(path))


def test_many_threads_write(tmp_path: Path) -> None:
    with DecisionLog(tmp_path / "log") as log:
        threads = [
            threading.Thread(target=lambda: [log.add(CALL, answered()) for _ in range(25)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({row.id for row in read_log(tmp_path / "log")}) == 200


def test_a_locked_file_costs_rows_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decision_log, "BUSY_S", 0.05)
    path = tmp_path / "log"
    with DecisionLog(path) as log:
        log.add(CALL, answered())
    with DecisionLog(path) as log:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(3):
            log.add(CALL, answered())
        log.close()
        other.execute("COMMIT")
        other.close()
        assert log.dropped == 3
    assert "loses rows: database is locked" in caplog.text and len(caplog.records) == 1
    assert len(list(read_log(path))) == 1


def test_a_disk_without_room_costs_rows_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with DecisionLog(tmp_path / "file" / "log") as log:
        log.add(CALL, answered())
    assert log.dropped == 1


def test_a_log_that_was_closed_takes_no_more(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log")
    log.close()
    log.close()
    log.add(CALL, answered())
    assert log.dropped == 1 and not (tmp_path / "log").exists()


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_decision_log import CALL, DecisionLog, answered
{lines}
"""


@pytest.mark.parametrize(
    "lines",
    [
        "log = DecisionLog(Path({path!r}))\nfor _ in range(99): log.add(CALL, answered())",
        "for _ in range(99): DecisionLog(Path({path!r})).add(CALL, answered())",
    ],
    ids=["never closed", "let go"],
)
def test_what_waits_is_written_at_the_end_of_the_process(tmp_path: Path, lines: str) -> None:
    script = SCRIPT.format(
        tests=str(Path(__file__).parent), lines=lines.format(path=str(tmp_path / "log"))
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
    assert len(list(read_log(tmp_path / "log"))) == 99


def test_a_log_that_is_let_go_leaves_no_thread(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log")
    log.add(CALL, answered())
    thread = log._writer._thread
    assert thread is not None and thread.is_alive()
    del log
    gc.collect()
    thread.join(120)
    assert not thread.is_alive()
    assert len(list(read_log(tmp_path / "log"))) == 1


def test_a_log_may_be_let_go_in_the_middle_of_its_writer(tmp_path: Path) -> None:
    """Garbage is collected at any allocation, so also while this very thread holds the lock."""

    def within() -> None:
        log = DecisionLog(tmp_path / "log")
        log.add(CALL, answered())
        with log._writer._lock:
            del log
            gc.collect()

    thread = threading.Thread(target=within, daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()


def test_names_of_files_are_no_addresses(tmp_path: Path) -> None:
    with DecisionLog(tmp_path / "run#1?.sqlite") as log:
        log.add(CALL, answered())
    assert len(list(read_log(tmp_path / "run#1?.sqlite"))) == 1


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no decision log"):
        list(read_log(tmp_path / "nothing"))
    (tmp_path / "other").write_text("no database " * 99, encoding="utf-8")
    with pytest.raises(ConfigError, match="is no decision log"):
        list(read_log(tmp_path / "other"))


# --- replay ---------------------------------------------------------------------------------------


def test_another_budget_chooses_other_tiers(tmp_path: Path) -> None:
    gone = (forecast("small", 0.6, 1.0), forecast("large", 0.9, 3.0, 0))
    with DecisionLog(tmp_path / "log") as log:
        log.add(CALL, answered("large"))
        log.add(CALL, answered("small", gone))
    rows = list(read_log(tmp_path / "log"))

    same = replay(rows, Budget(quality=0.9)).to_json()
    assert (same["calls"], same["changed"], same["tiers"]["now"]) == (
        2,
        0,
        {"large": 1, "small": 1},
    )
    assert same["seconds"] == {"then": 4.0, "now": 4.0}

    for tight in (Budget(seconds_per_call=2), Budget(memory=200), Budget(seconds_to_first_token=1)):
        found = replay(rows, tight).to_json()
        assert found["tiers"]["now"] == {"small": 2} and found["changed"] == 1
        assert found["success"]["now"] == 0.6 and found["seconds"]["now"] == 2.0

    # 12 and 36 J: a limit, and a price that leaves 0.9 - 0.36 of the large one's 0.9.
    for thrifty in (Budget(joules_per_call=20), Budget(price_per_joule=0.015, quality=0.5)):
        found = replay(rows, thrifty).to_json()
        assert found["tiers"]["now"] == {"small": 2}
        assert found["joules"] == {"then": 48.0, "now": 24.0}
    dear = Budget(price_per_joule=0.01, quality=0.5)
    assert replay(rows, dear).to_json()["tiers"]["now"] == {"large": 1, "small": 1}
    assert replay(rows, Budget(power="saver")).to_json()["tiers"] == same["tiers"]
    with pytest.raises(ConfigError, match="price_per_second"):
        replay(rows, Budget(mean_seconds=1))

    nothing = replay(rows, Budget(seconds_per_call=0.1)).to_json()
    assert nothing["refused"] == 2 and nothing["tiers"]["now"] == {"none": 2}


def test_a_call_that_was_escalated_is_decided_from_its_beginning(tmp_path: Path) -> None:
    first = Decision("small", "cheap", 0.5, 3, FORECASTS, prompt=(1, 2, 3))
    above = (replace(FORECASTS[0], memory_bytes=0, feasible=False, verdict="no better than small"),)
    second = Decision("large", "escalated", 0.5, 3, (*above, FORECASTS[1]), prompt=(1, 2, 3))
    tries = (
        Attempt(first, Reply(""), 0.5, "the reply is empty"),
        Attempt(second, Reply("x"), 3, ""),
    )
    with DecisionLog(tmp_path / "log") as log:
        log.add(CALL, Answer(tries, "1"))
    (row,) = read_log(tmp_path / "log")
    again = replay([row], Budget(quality=0.5)).rows[0]
    assert (again.then, again.now) == ("large", "large")  # small is asked first, and fails again
    assert again.seconds_then == again.seconds_now == 4.0
    better = replay([row], Budget(quality=1.0)).rows[0]
    assert better.now == "large" and better.seconds_now == 3.0  # at once
    tight = replay([row], Budget(seconds_per_call=0.5, quality=0.0)).rows[0]
    assert tight.now is None
