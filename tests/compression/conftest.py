"""A model wide enough for K-quants, and a disk that is full."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from build_tools import FileLimit
from tiny_models import write_tiny_gguf


@pytest.fixture(scope="session")
def wide_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, widths that are multiples of 256; never write to it."""
    path = tmp_path_factory.mktemp("models") / "wide.gguf"
    return write_tiny_gguf(path, layers=6, width=256, ffn=512)


@pytest.fixture
def file_limit() -> FileLimit:
    """No file may become larger than so many bytes, as on a disk that is full (EFBIG)."""
    resource = pytest.importorskip("resource")  # not on Windows
    # Python ignores it from its start, or the process would end instead.
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
