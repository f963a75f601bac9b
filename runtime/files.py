"""Files: atomic writes, remembered hashes, and the user's own Tierwise folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from tierwise.runtime.errors import DiskFullError


def home() -> Path:
    """Where Tierwise keeps what belongs to this machine (profiles, hashes, downloads).

    ``TIERWISE_HOME`` overrides it.
    """
    override = os.environ.get("TIERWISE_HOME")
    return Path(override) if override else Path(platformdirs.user_data_dir("tierwise"))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes text or bytes so that a reader, or a crash, sees the old file or the new one whole.

    Raises:
        DiskFullError: There is no room; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_named(path):
        # Not from `tempfile`: those files are for their owner alone, and so would the new one be.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turns "no space left" (or over quota) into an error that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"no room left to write {str(path)!r}. Free some space (or choose another --out) "
                "and run the same command again: what is finished is kept."
            ) from error
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Puts a file in a second place: a hard link where the disk can do that, else a copy.

    Raises:
        DiskFullError: There is no room for the copy.
    """
    source = source.resolve()  # a hard link of a symbolic link would lead astray
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(source, part)
        except OSError:
            with disk_full_named(target):
                shutil.copyfile(source, part)
        part.replace(target)
    finally:
        # Left over by a copy that failed, and by a rename onto another link of the same file.
        part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The file's sha256 as 64 hex digits (about 1 GB/s; use `FileHashes` for repeated use)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """sha256 of files, remembered by path, size and modification time across processes."""

    _shared: FileHashes | None = None

    def __init__(self, store: Path) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, int, str]] = {}
        # A damaged store is as good as none.
        with suppress(OSError, ValueError, TypeError, AttributeError):
            self._known = {
                path: (int(size), int(mtime), str(digest))
                for path, (size, mtime, digest) in json.loads(store.read_text()).items()
            }

    @classmethod
    def shared(cls) -> FileHashes:
        """The store in Tierwise's home folder."""
        store = home() / "hashes.json"
        if cls._shared is None or cls._shared._store != store:
            cls._shared = cls(store)
        return cls._shared

    def sha256(self, path: Path) -> str:
        """The file's sha256; reads the file only if it changed since it was last hashed."""
        path = path.resolve()
        stat = path.stat()
        with self._lock:
            known = self._known.get(str(path))
        if known and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known[2]
        digest = sha256_of(path)
        with self._lock:
            self._known[str(path)] = (stat.st_size, stat.st_mtime_ns, digest)
            # A read-only home costs a second hash next time, nothing else.
            with suppress(OSError, DiskFullError):
                write_atomically(self._store, json.dumps(self._known, indent=0))
        return digest
