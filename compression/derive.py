"""`derive`: has a cheaper variant of a tier made, while the family answers calls.

A process of its own does all of it (`variant`). llama.cpp's quantizer cannot be interrupted, holds
the log that every load of a model needs for as long as it runs, and takes memory that may not be
there: none of that may reach the process that answers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tierwise.compression.variant import WORK
from tierwise.runtime import errors
from tierwise.runtime.errors import BuildError
from tierwise.runtime.family import Family
from tierwise.runtime.variants import FOLDER, Variant, VariantStore, Wanted

LOOK_S = 0.2
"""How often to see whether it is still wanted."""


def derive(wanted: Wanted, stop: threading.Event) -> Variant | None:
    """Makes a variant, or finds it made.

    Args:
        wanted: Which.
        stop: Once it is set, the work is given up.

    Returns:
        It; None where there is none that is worth making, or it was given up.

    Raises:
        FamilyError, ModelError, OutOfMemoryError, DiskFullError: As in `variant.make_variant`.
        BuildError: The process failed or was killed.
    """
    command = [sys.executable, "-P", "-m", "tierwise.compression.variant"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            [*command, wanted.model_dump_json()],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as child,
    ):
        try:
            while child.poll() is None:
                if stop.wait(LOOK_S):
                    return None
        finally:
            child.kill()
            child.wait()
            work = Path(wanted.folder) / FOLDER / f"{WORK}{child.pid}"
            shutil.rmtree(work, ignore_errors=True)
        said.seek(0)
        result = _result(said.readlines(), child.returncode, wanted)
    if (key := result["key"]) is None:
        return None
    return VariantStore(Family.load(wanted.folder, verify=False)).find(key)


def _result(lines: list[str], code: int, wanted: Wanted) -> dict[str, Any]:
    """The last line, which is JSON; whatever a library said may come before it."""
    if code == 0 and lines and lines[-1].startswith("{"):
        result: dict[str, Any] = json.loads(lines[-1])
        if "error" in result:
            raise getattr(errors, result["error"])(result["reason"])
        return result
    ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    last = " | ".join(line.strip() for line in lines[-3:] if line.strip())
    raise BuildError(
        f"the process that made a cheaper variant of {wanted.parent.name!r} {ending} (signal 9 is "
        f"what the system sends when memory runs out). It said last: {last or '(nothing)'}"
    )
