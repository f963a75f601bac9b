"""Finished stages are found again by their inputs, and long C calls can be interrupted."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel

from tierwise.compression.stages import Stages, content_key, interruptible


class Record(BaseModel):
    value: int


def test_keys_stand_for_their_inputs() -> None:
    key = content_key(base="a", layers=(1, 2), seed=0)
    assert len(key) == 16 and int(key, 16) >= 0
    assert content_key(seed=0, layers=[1, 2], base="a") == key
    others = [
        content_key(base="b", layers=(1, 2), seed=0),
        content_key(base="a", layers=(2, 1), seed=0),
        content_key(base="a", layers=(1, 2), seed=1),
        content_key(base="a", layers=(1, 2), seed=0, more=None),
        content_key(base="a", layers=(1, 2)),
    ]
    assert len({key, *others}) == 6


def test_keys_change_with_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_key(base="a")
    monkeypatch.setattr("tierwise.compression.stages.FORMAT", 99)
    assert content_key(base="a") != before


def test_records_are_kept(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "work")
    assert stages.load("tier", "k", Record) is None
    stages.save("tier", "k", Record(value=3))
    assert Stages(tmp_path / "work").load("tier", "k", Record) == Record(value=3)
    assert stages.load("tier", "other", Record) is None
    assert stages.load("other", "k", Record) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"value": "x"}', b"\xff\xfe", b"{}"])
def test_damaged_records_are_none(tmp_path: Path, damage: bytes) -> None:
    stages = Stages(tmp_path)
    stages.file("tier", "k", ".json").write_bytes(damage)
    assert stages.load("tier", "k", Record) is None
    stages.save("tier", "k", Record(value=4))
    assert stages.load("tier", "k", Record) == Record(value=4)


def test_results_and_errors_come_through() -> None:
    assert interruptible(lambda: 7) == 7
    assert interruptible(lambda: None) is None
    with pytest.raises(KeyError, match="gone"):
        interruptible(lambda: {}["gone"])
    with pytest.raises(SystemExit):
        interruptible(lambda: (_ for _ in ()).throw(SystemExit(3)))


def test_the_work_runs_elsewhere() -> None:
    assert interruptible(threading.current_thread) is not threading.current_thread()


def test_ctrl_c_is_answered_at_once() -> None:
    release = threading.Event()
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    ended: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        interruptible(lambda: ended.append(release.wait(300)))
    assert ended == []  # it was not waited for
    release.set()
    timer.join()
