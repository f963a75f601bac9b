"""Atomic writes, full disks, and remembered hashes."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tierwise.runtime.errors import BuildError, DiskFullError
from tierwise.runtime.files import FileHashes, home, sha256_of, write_atomically


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_home_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIERWISE_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("TIERWISE_HOME")
    assert home().name == "tierwise"


# --- Writing --------------------------------------------------------------------------------------


def test_writing_makes_folders_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    write_atomically(path, "old")
    write_atomically(path, "größer 🎉\n")
    assert path.read_text(encoding="utf-8") == "größer 🎉\n"
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    """A family in a shared folder is of no use if its manifest is private."""
    path = tmp_path / "a.json"
    before = os.umask(0o022)
    try:
        write_atomically(path, "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")  # a lone surrogate has no UTF-8
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file size limit")
def test_a_full_disk_is_named_and_harmless(tmp_path: Path) -> None:
    """A limit on the file size fails like a full disk: in the midst of writing."""
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    run = run_python(
        """
        import resource, sys
        from pathlib import Path
        from tierwise.runtime.errors import DiskFullError
        from tierwise.runtime.files import write_atomically
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_atomically(Path(sys.argv[1]), "new " * 10_000)
        except DiskFullError as error:
            print(error)
        """,
        str(path),
    )
    assert run.returncode == 0, run.stderr
    assert str(path) in run.stdout and "Free some space" in run.stdout
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left_is_a_build_error() -> None:
    from tierwise.runtime.files import disk_full_named

    with (
        pytest.raises(DiskFullError, match="here") as caught,
        disk_full_named(Path("here")),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x")
        full.flush()
    assert isinstance(caught.value, BuildError)
    assert isinstance(caught.value.__cause__, OSError)


def test_other_failures_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "file" / "a.json", "text")
    assert not isinstance(caught.value, DiskFullError)


# --- Hashes ---------------------------------------------------------------------------------------


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1000)
    assert sha256_of(path) == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_hash_is_remembered_by_size_and_time(tmp_path: Path) -> None:
    path, store = tmp_path / "file", tmp_path / "hashes.json"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 1_000))
    first = FileHashes(store).sha256(path)
    assert first == hashlib.sha256(b"one").hexdigest()

    # Same size and time: the file is not read again, not even by another process's store.
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 1_000))
    assert FileHashes(store).sha256(path) == first

    # Another time, then another size: it is.
    os.utime(path, ns=(0, 2_000))
    assert FileHashes(store).sha256(path) == hashlib.sha256(b"two").hexdigest()
    path.write_bytes(b"three")
    os.utime(path, ns=(0, 2_000))
    assert FileHashes(store).sha256(path) == hashlib.sha256(b"three").hexdigest()


def test_two_names_of_one_file_share_a_hash(tmp_path: Path) -> None:
    path, link, store = tmp_path / "file", tmp_path / "link", tmp_path / "hashes.json"
    path.write_bytes(b"one")
    link.symlink_to(path)
    hashes = FileHashes(store)
    assert hashes.sha256(link) == hashes.sha256(path)
    assert list(json.loads(store.read_text())) == [str(path)]


@pytest.mark.parametrize(
    "damaged", ["", "{", "[1, 2]", '{"/a": 3}', '{"/a": [1, 2]}', '{"/a": ["x", null, 3]}']
)
def test_a_damaged_store_is_as_good_as_none(tmp_path: Path, damaged: str) -> None:
    path, store = tmp_path / "file", tmp_path / "hashes.json"
    path.write_bytes(b"one")
    store.write_text(damaged)
    assert FileHashes(store).sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert list(json.loads(store.read_text())) == [str(path)]


def test_a_store_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    hashes = FileHashes(path / "no-folder" / "hashes.json")
    assert hashes.sha256(path) == hashlib.sha256(b"one").hexdigest()


def test_the_shared_store_follows_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    for name in ("a", "b"):
        monkeypatch.setenv("TIERWISE_HOME", str(tmp_path / name))
        FileHashes.shared().sha256(path)
        assert list(json.loads((tmp_path / name / "hashes.json").read_text())) == [str(path)]
