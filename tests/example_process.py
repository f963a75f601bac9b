"""Runs an example as a user would, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def output_of(example: Path, *arguments: str, cwd: Path, timeout: float) -> str:
    """What it prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, str(example), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
