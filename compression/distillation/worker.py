"""Torch's part of a build, in processes of its own.

llama.cpp and torch each keep helper threads, which put each other to sleep in one process; and
a process that ends gives all its memory back. ``python -m tierwise.compression.distillation.worker
VERB FOLDER`` is that process; it tells what it does in lines of JSON.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tierwise.compression.reporting import Progress
from tierwise.runtime import errors
from tierwise.runtime.errors import BuildError, ConfigError, TierwiseError

Verb = Literal["capture", "prune", "train"]
_MODULE = "tierwise.compression.distillation.worker"


def run_worker(
    verb: Verb,
    folder: Path,
    *,
    threads: int,
    launch: str = "",
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> None:
    """Runs one piece of work to its end; the folder holds what goes in and what comes out.

    Args:
        verb: Which piece.
        folder: Its folder.
        threads: For torch.
        launch: What to start it with, such as "accelerate launch --num_processes 2".
        note: Hears what is worth knowing.

    Raises:
        TierwiseError: As raised there.
        BuildError: The process died; says what it said last.
        ConfigError: ``launch`` cannot be started.
    """
    command = [sys.executable, "-P", "-m", _MODULE]
    if launch:
        command = [*shlex.split(launch), "-m", _MODULE]
    command += [verb, str(folder.resolve())]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise ConfigError(f"launch: {launch!r} cannot be started: {error}") from error
        with child:
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    _hear(line, progress, note)
            except BaseException:
                child.kill()
                raise
            code = child.wait()
        if code == 0:
            return
        said.seek(0)
        last = " | ".join(line.strip() for line in said.readlines()[-5:] if line.strip())
    raise BuildError(
        f"the process for {verb!r} ended with code {code}"
        f"{' (killed: perhaps memory ran out)' if code == -9 else ''}. It said last: "
        f"{last or '(nothing)'}. Run the same command again: what is finished is kept."
    )


def _hear(line: str, progress: Progress | None, note: Callable[[str], None] | None) -> None:
    if not line.startswith("{"):  # some library that greets on stdout
        return
    message = json.loads(line)
    if "error" in message:
        raise getattr(errors, message["error"])(message["reason"])
    if "text" in message and progress is not None:
        progress(message["text"], message["share"])
    if "note" in message and note is not None:
        note(message["note"])


def _tell(**message: Any) -> None:
    """One line to whoever started us; of several processes, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(message), flush=True)


def main() -> None:
    """The child's side."""
    verb, folder = sys.argv[1], Path(sys.argv[2])
    import torch

    from tierwise.compression.distillation import job, preparation

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    work: dict[str, Callable[..., object]] = {
        "capture": preparation.capture_lessons,
        "prune": preparation.prune_student,
        "train": job.run_job,
    }
    try:
        work[verb](
            folder,
            progress=lambda text, share: _tell(text=text, share=share),
            note=lambda text: _tell(note=text),
        )
    except TierwiseError as error:
        _tell(error=type(error).__name__, reason=str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
