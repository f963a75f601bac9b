"""``tierwise learn`` from log to swap: what is better comes in, all else changes nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from family_factory import TierSpec, make_family
from log_factory import Row, write_log
from scripted_model import write_scripted_gguf
from tiny_models import write_tiny_gguf
from typer.testing import CliRunner

from tierwise import ChatTierwise
from tierwise.compression import swap
from tierwise.compression.quantize import quantize
from tierwise.compression.reporting import Progress
from tierwise.compression.swap import WORK
from tierwise.plugin.cli import app
from tierwise.plugin.learning import LearnConfig, Learned, learn_tier
from tierwise.routing.decision_log import read_log
from tierwise.routing.logged_calls import right_calls
from tierwise.runtime.chat import Call, Message, Reply
from tierwise.runtime.errors import BuildError
from tierwise.runtime.family import Family
from tierwise.runtime.files import sha256_of

OPTIONS: dict[str, Any] = {
    "steps": 40,
    "learning_rate": 3e-3,
    "replay_tokens": 0,
    "tokens_per_step": 512,
    "suites": ("tools:3",),
    "tolerance": 0.75,
}
"""Enough for a tiny model to learn one reply; three tasks rule out no smaller loss."""

SCRIPT = """
import contextlib, json, os, signal, sys
from pathlib import Path
from tierwise.plugin.learning import LearnConfig, learn_tier
folder, log, options, victim = sys.argv[1:]

class Reporter:
    @contextlib.contextmanager
    def stage(self, title):
        def progress(text, share):
            if title.startswith(victim):
                os.kill(os.getpid(), signal.SIGKILL)
        yield progress
    def note(self, text):
        pass

config = LearnConfig.model_validate(json.loads(options))
learn_tier(folder, [Path(log)], config=config, threads=1, reporter=Reporter())
"""


def word(number: int) -> str:
    return "".join(
        "bcdfghjklmnp"[(number * 7 + at * 5) % 12] + "aeiou"[(number + at * 3) % 5]
        for at in range(3)
    )


def row(number: int, **options: Any) -> Row:
    call = Call((Message("user", f"weather in {word(number)}"),), max_tokens=24)
    return Row(call, Reply("hello Paris"), **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a family and a log; never write to it."""
    room = tmp_path_factory.mktemp("learn")
    tiny = write_tiny_gguf(room / "tiny.gguf", layers=2, context=4096)
    quantize(tiny, room / "small.gguf", "Q8_0", threads=1)
    large = write_tiny_gguf(room / "large.gguf", layers=3, seed=1, context=4096)
    specs = [
        TierSpec("small", room / "small.gguf", kl=0.2, success={"easy": 0.1}, n=4),
        TierSpec("large", large, kl=0.0, success={"easy": 0.5}, n=4),
    ]
    make_family(room / "family", specs)
    write_log(room / "log.sqlite", [row(number) for number in range(42)])
    return room


@pytest.fixture
def room(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "room")


def learned(room: Path, **options: Any) -> Learned:
    config = LearnConfig.model_validate({**OPTIONS, **options})
    return learn_tier(room / "family", [room / "log.sqlite"], config=config, threads=1)


def content(folder: Path) -> Mapping[str, bytes]:
    """The family's files, without those of the work."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and WORK not in path.parts
    }


def run(*arguments: Any, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


# --- what is better comes in ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_tier_learns_and_is_swapped_and_all_can_be_undone(room: Path) -> None:
    before = content(room / "family")
    found = learned(room)
    logged = found.comparison.logged
    assert found.swapped and (found.tier, found.learned, logged.tasks) == ("small", 28, 14)
    assert logged.before == 0 and logged.after > 0.9 and logged.gain.low > 0
    assert found.comparison.general is not None and found.comparison.general.tasks == 3
    family = Family.load(room / "family")
    assert family == found.family
    tier, old = (
        family.tier("small"),
        Family.model_validate_json(before["family.json"]).tier("small"),
    )
    learning = tier.lineage.learning
    assert learning is not None and learning.parent_sha256 == old.sha256
    assert (learning.calls, learning.held_out, learning.after) == (28, 14, logged.after)
    assert learning.training.quantization_aware == "Q8_0" and learning.training.steps == 40
    assert tier.quality.tools is not None and tier.quality.tools.overall.n == 4
    assert tier.quality.divergence is None  # the base is not here to be compared with
    card = (room / "family" / "small.md").read_text(encoding="utf-8")
    assert "from 28 logged calls" in card and old.sha256[:12] in card
    # No logged text stays behind, and no weights.
    left = {path.name.split("-")[0] for path in (room / "family" / WORK).iterdir()}
    assert left == {"before", "verdict"}
    assert all(b"weather in" not in p.read_bytes() for p in (room / "family" / WORK).iterdir())
    with ChatTierwise(family=str(room / "family"), threads=1, model="small") as model:
        assert "hello Paris" in model.invoke(f"weather in {word(77)}").text

    shown = json.loads(run("show", room / "family", "--json").stdout)
    assert shown["tiers"][0]["learning"]["calls"] == 28
    assert "taught logged calls" in run("show", room / "family").stdout
    # The same once more says what came of it, and teaches nothing twice.
    again = learned(room)
    assert again.before and again.swapped and again.comparison == found.comparison
    assert Family.load(room / "family") == family

    undone = json.loads(run("learn", room / "family", "--undo", "--json").stdout)
    assert undone == {"tier": "small", "file": "small.gguf", "sha256": old.sha256}
    after = content(room / "family")
    assert {name: after[name] for name in before} == before
    assert (
        "keeps nothing that a tier was before"
        in run("learn", room / "family", "--undo", code=2).stderr
    )


@pytest.mark.slow
def test_killed_anywhere_the_same_command_goes_on(room: Path, tmp_path: Path) -> None:
    other = shutil.copytree(room, tmp_path / "other")
    wanted = learned(other).family.tier("small")
    options = json.dumps(OPTIONS)
    family, log = room / "family", room / "log.sqlite"
    before = content(family)
    for victim in ("Listening", "Teaching", "Asking"):
        command = [sys.executable, "-c", SCRIPT, str(family), str(log), options, victim]
        dead = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert dead.returncode == -signal.SIGKILL, (victim, dead.stderr)
        assert content(family) == before
        # Calls go on meanwhile; what was begun is not begun anew.
        write_log(log, [row(100 + len(victim))])
    found = learned(room)
    assert found.swapped and not found.before and found.learned == 28
    assert found.family.tier("small").sha256 == wanted.sha256


@pytest.mark.slow
def test_what_follows_a_swap_is_made_up_for(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(swap, "write_cards", killed)
        with pytest.raises(KeyboardInterrupt):
            learned(room)
    family = Family.load(room / "family")
    assert family.tier("small").lineage.learning is not None
    assert not (room / "family" / "small.md").exists()
    found = learned(room)
    assert found.before and found.swapped and found.family == family
    assert (room / "family" / "small.md").is_file()
    assert not list((room / "family" / WORK).glob("begun-*"))


# --- what is not better leaves all as it was ------------------------------------------------------


@pytest.mark.slow
def test_what_is_not_better_changes_nothing(room: Path) -> None:
    family, log = room / "family", room / "log.sqlite"
    before = content(family)
    command = ["learn", family, "--from", log, "--steps", 1, "--suite", "tools:6", "--threads", 1]
    said = json.loads(run(*command, "--json").stdout)
    assert not said["swapped"] and not said["better"] and not said["before"]
    assert said["logged"]["tasks"] == 14 and said["general"]["tasks"] == 6
    assert content(family) == before
    shown = run(*command).stdout  # judged once
    assert "small stays as it was: it is not better by more than chance" in shown
    assert "was taught 28 logged calls" in shown and "of 14 (difference +0.0%" in shown
    assert content(family) == before


@pytest.mark.slow
def test_a_tier_that_was_changed_meanwhile_is_not_overwritten(room: Path) -> None:
    """Another process swaps the same tier while this one asks both files."""
    other = write_tiny_gguf(room / "family" / "other.gguf", layers=2, seed=4, context=4096)

    class Meddler:
        def stage(self, title: str) -> AbstractContextManager[Progress]:
            if title.startswith("Tool tasks"):
                family = Family.load(room / "family")
                record = {"file": other.name, "sha256": sha256_of(other)}
                size = {"bytes": other.stat().st_size}
                tier = family.tier("small").model_copy(update=record | size)
                tiers = (tier, *family.tiers[1:])
                family.model_copy(update={"tiers": tiers}).save(room / "family")
            return nullcontext(lambda _text, _share: None)

        def note(self, text: str) -> None:
            pass

    config = LearnConfig.model_validate(OPTIONS)
    with pytest.raises(BuildError, match="was changed while it was worked on"):
        learn_tier(
            room / "family", [room / "log.sqlite"], config=config, threads=1, reporter=Meddler()
        )
    assert Family.load(room / "family").tier("small").file == "other.gguf"


def test_what_cannot_teach_is_said_and_nothing_is_begun(room: Path) -> None:
    family = room / "family"
    before = content(family)

    def told(*options: Any) -> str:
        done = run("learn", family, *options, code=2)
        return " ".join(str(done.stderr).split())

    (room / "prose").write_text("no database " * 99, encoding="utf-8")
    assert "is no decision log" in told("--from", room / "prose")
    assert "there is no decision log" in told("--from", room / "nothing")
    bare = write_log(room / "bare", [row(n) for n in range(30)], text=False)
    assert "log_text=True" in told("--from", bare)
    few = write_log(room / "few", [row(n) for n in range(5)])
    said = told("--from", few)
    assert "24 different prompts" in said and "there are 5" in said
    assert "no tier 'huge'" in told("--from", room / "log.sqlite", "--tier", "huge")
    assert "--from LOG" in told()
    assert "'minutes' cannot be 0" in told("--from", room / "log.sqlite", "--minutes", 0)
    assert "there is no suite 'poems'" in told("--from", room / "log.sqlite", "--suite", "poems")
    assert content(family) == before and not (family / WORK).exists()


# --- logs of real calls ---------------------------------------------------------------------------


def test_real_escalations_are_found_in_the_log(tmp_path: Path) -> None:
    script = {"apple": "", "pear": "Green."}
    files = [
        write_scripted_gguf(tmp_path / "small.gguf", script),
        write_scripted_gguf(tmp_path / "large.gguf", {"apple": "Red.", "pear": "Green."}),
    ]
    specs = [TierSpec("small", files[0], kl=0.0), TierSpec("large", files[1], kl=0.0)]
    specs[1] = TierSpec("large", files[1], kl=0.0, prefill=10.0, decode=1.0)
    family = make_family(tmp_path / "family", specs)
    log = tmp_path / "log.sqlite"
    with ChatTierwise(
        family=str(family.folder), threads=1, decision_log=log, log_text=True
    ) as model:
        for fruit in ("apple", "pear"):
            model.invoke(f"Tell me of the {fruit}")
    calls = right_calls(read_log(log)).calls
    assert [(one.tier, one.reply.text, one.doubted) for one in calls] == [
        ("large", "Red.", ("small",))
    ]
