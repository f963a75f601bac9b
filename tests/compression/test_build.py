"""A whole build on a tiny base: what comes out, and what is left when it is cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from build_tools import FileLimit, Recorder
from tiny_models import write_tiny_gguf

from tierwise.compression.adopt import adopt_tier
from tierwise.compression.build import WORK, build_family
from tierwise.compression.found_recipe import RECIPE
from tierwise.compression.publish import publish
from tierwise.compression.quantize import quantize
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.report.tried import load_tried
from tierwise.compression.report.write import REPORT
from tierwise.evaluation.tasks import suite_name
from tierwise.runtime.errors import (
    ConfigError,
    DamagedModelError,
    DiskFullError,
    ModelNotFoundError,
    TierwiseError,
    UnsupportedModelError,
)
from tierwise.runtime.family import MANIFEST, Family
from tierwise.runtime.files import sha256_of
from tierwise.runtime.llama import Model
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.profile import load_profile
from tierwise.runtime.remote_tier import RemoteTier

SMALL: dict[str, Any] = {
    "tiers": 2,
    "calibration_tokens": 256,
    "held_out_tokens": 128,
    "screen_tokens": 64,
    "suite_tasks": 4,
    "kv_tokens": 128,
    "min_top1": 0.0,
    "threads": 1,
}
PINNED: dict[str, Any] = {
    **SMALL,
    "keep_all": True,
    "candidates": [{"quantization": "Q8_0"}, {"quantization": "Q4_0", "prune": 0.2}],
}
"""Two tiers whatever the speeds, which vary: two builds can be compared."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers; its context is so short that most tasks of the suite fail at once."""
    return write_tiny_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf", layers=6, context=512)


def build(base: Path, out: Path, reporter: Recorder | None = None, **options: Any) -> Family:
    config = BuildConfig.make(**{**PINNED, **options})
    return build_family(base, out, config, reporter=reporter)


def fingerprint(family: Family) -> dict[str, Any]:
    """All that two builds of one base must agree on; the order follows speeds."""
    return {tier.name: tier.model_dump() for tier in family.tiers}


def strays(out: Path) -> list[str]:
    """Files of the family's folder that no one needs once it is complete."""
    tiers = Family.load(out).tiers
    known = {MANIFEST, RECIPE, REPORT, *(f"{tier.name}.md" for tier in tiers)}
    known |= {tier.file for tier in tiers}
    files = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    return [name for name in files if name not in known and not name.endswith((".json", ".npz"))]


# --- What comes out -------------------------------------------------------------------------------


def test_a_base_becomes_a_family(wide_gguf: Path, tmp_path: Path) -> None:
    reporter = Recorder()
    out = tmp_path / "family"
    family = build_family(wide_gguf, out, BuildConfig.make(**SMALL), reporter=reporter)
    assert family == Family.load(out)
    assert 1 <= len(family.tiers) <= 2
    assert family.base.sha256 == sha256_of(wide_gguf)
    assert (family.base.layers, family.base.architecture) == (6, "llama")
    assert family.base.dequantized_from is None and family.base.licence == "apache-2.0"
    for tier in family.tiers:
        assert tier.lineage.origin == "built"
        assert sum(tier.lineage.tensor_types.values()) > 0
        assert tier.lineage.imatrix_sha256 is not None
        divergence, tools = tier.quality.divergence, tier.quality.tools
        assert divergence is not None and divergence.tokens == 128
        assert divergence.kl_mean > 0 and divergence.top1_agreement.n == 128
        moved = tier.quality.kv_q8_0
        assert moved is not None and moved.tokens == 128 and 0 < moved.kl_mean < divergence.kl_mean
        assert tools is not None and (tools.suite, tools.seed) == (suite_name(6), 0)
        assert tools.overall.n == 4
        samples = tier.quality.samples
        assert [one.task for one in samples] == [
            one.task for one in family.tiers[0].quality.samples
        ]
        assert len(samples) == 4 and all(one.prompt and one.expected for one in samples)
        assert load_profile(tier.sha256) is not None
        with LoadedTier(family.path(tier), n_ctx=64, threads=1) as loaded:
            assert loaded.model.layers == tier.layers
    # Everything that was thought of is in the family, or it says why not.
    made = {title.removeprefix("Making ") for title in reporter.titles if "Making" in title}
    assert made <= {tier.name for tier in family.tiers} | family.dropped.keys()
    gone = [note for note in reporter.notes if note.startswith(("not made: ", "dropped: "))]
    assert {note.split(": ")[1].split(" (")[0] for note in gone} == set(family.dropped)
    tried = {one.name: one for one in load_tried(out)}
    assert {name for name, one in tried.items() if one.kept} == {t.name for t in family.tiers}
    assert {name: one.reason for name, one in tried.items() if not one.kept} == family.dropped
    assert all(tried[name].kl_mean is not None for name in made)
    report = (out / REPORT).read_text()
    assert all(tier.name in report and (out / f"{tier.name}.md").is_file() for tier in family.tiers)
    assert strays(out) == []


def test_pinned_tiers_are_made_as_asked(base: Path, tmp_path: Path) -> None:
    candidates = [
        {"quantization": "Q8_0", "prune": [2, 4]},
        {"quantization": "Q4_0", "prune": 0.2, "name": "thin"},
        {"quantization": "copy", "name": "whole"},
    ]
    family = build(base, tmp_path / "family", candidates=candidates)
    tiers = {tier.name: tier for tier in family.tiers}
    assert tiers.keys() == {"d4-q8_0", "thin", "whole"}
    assert tiers["d4-q8_0"].lineage.pruned_layers == (2, 4)
    assert tiers["d4-q8_0"].layers == 4
    assert len(tiers["thin"].lineage.pruned_layers) == 1 and tiers["thin"].layers == 5
    whole = tiers["whole"]
    assert (whole.sha256, whole.lineage.quantization) == (sha256_of(base), "F16")
    assert whole.lineage.imatrix_sha256 is None
    divergence = whole.quality.divergence
    assert divergence is not None
    assert divergence.kl_mean < 1e-4 and divergence.top1_agreement.value == 1.0
    assert whole.quality.kv_q8_0 is None  # heads of 16 values


def test_no_observation_where_none_is_needed(base: Path, tmp_path: Path) -> None:
    reporter = Recorder()
    pinned = [{"quantization": "Q8_0"}]
    family = build(base, tmp_path / "family", reporter, imatrix=False, candidates=pinned)
    assert "Observing activations" not in reporter.titles
    assert family.tiers[0].lineage.imatrix_sha256 is None


def test_a_mixture_of_experts_becomes_a_family(tmp_path: Path) -> None:
    moe = write_tiny_gguf(tmp_path / "moe.gguf", experts=4, layers=6, width=256, ffn=256)
    pinned = [
        {"quantization": "Q4_K_M", "name": "small"},
        {"quantization": "Q8_0", "name": "large"},
        {"quantization": "Q8_0", "prune": 0.2, "name": "thin"},
    ]
    family = build(moe, tmp_path / "family", candidates=pinned, keep_all=True)
    tiers = {tier.name: tier for tier in family.tiers}
    assert tiers["small"].lineage.imatrix_sha256 is not None and tiers["thin"].layers == 5
    divergence = tiers["large"].quality.divergence
    assert divergence is not None and divergence.kl_mean < 0.1


def test_a_base_behind_a_symbolic_link_is_copied_whole(base: Path, tmp_path: Path) -> None:
    """As in the Hugging Face cache, whose snapshots are relative links."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes(base.read_bytes())
    link = tmp_path / "snapshot" / "tiny.gguf"
    link.symlink_to("../blobs/abc")
    family = build(link, tmp_path / "out" / "family", candidates=[{"quantization": "copy"}])
    path = family.path(family.tiers[0])
    assert not path.is_symlink() and path.read_bytes() == base.read_bytes()


def test_the_same_build_again_returns_at_once(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "family"
    first = build(base, out)
    written = (out / MANIFEST).stat().st_mtime_ns
    reporter = Recorder()
    assert build(base, out, reporter) == first
    assert reporter.titles == ["Reading the base model"]
    assert "was built already" in reporter.notes[0]
    assert (out / MANIFEST).stat().st_mtime_ns == written


def test_a_family_that_came_from_another_machine_gets_its_speed_measured(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "family"
    first = build(base, out)
    monkeypatch.setenv("TIERWISE_HOME", str(tmp_path / "new home"))
    assert load_profile(first.tiers[0].sha256) is None
    reporter = Recorder()
    assert build(base, out, reporter) == first
    names = {f"Speed of {tier.name}" for tier in first.tiers}
    assert names <= set(reporter.titles) and not any("Making" in one for one in reporter.titles)
    assert all(load_profile(tier.sha256) is not None for tier in first.tiers)


def test_other_options_reuse_what_they_share(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "family"
    first = build(base, out)
    reporter = Recorder()
    more = build(base, out, reporter, candidates=[*PINNED["candidates"], {"quantization": "Q5_0"}])
    assert reporter.titles == [
        "Reading the base model",
        "Making q5_0",
        "Speed of q5_0",
        "Tool tasks with q5_0",
        "Reading held-out text with the base",
        "Divergence of q5_0",
        "KV cache of q5_0 in q8_0",
    ]
    assert fingerprint(first).items() <= fingerprint(more).items()
    assert strays(out) == []


def test_a_damaged_stage_is_done_again(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "family"
    first = build(base, out)
    tier = first.path(first.tiers[0])
    tier.write_bytes(tier.read_bytes()[:-1] + b"?")
    for record in (out / WORK).glob("divergence-*.json"):
        record.write_text("{")
    reporter = Recorder()
    assert fingerprint(build(base, out, reporter)) == fingerprint(first)
    made = [title for title in reporter.titles if title.startswith("Making")]
    assert made == [f"Making {first.tiers[0].name}"]
    assert sum(title.startswith("Divergence") for title in reporter.titles) == 2


# --- What is left when it fails -------------------------------------------------------------------


def test_bases_that_cannot_be(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "family"
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(base.read_bytes()[:-1000])
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    unknown = write_tiny_gguf(tmp_path / "unknown.gguf", architecture="quux", layers=1)
    mute = write_tiny_gguf(tmp_path / "mute.gguf", chat_template=None, layers=1)
    cases: list[tuple[Path, type[TierwiseError], str]] = [
        (truncated, DamagedModelError, "truncated"),
        (text, DamagedModelError, "no GGUF file"),
        (unknown, UnsupportedModelError, "quux"),
        (mute, UnsupportedModelError, "no chat template"),
        (tmp_path / "missing.gguf", ModelNotFoundError, "missing"),
    ]
    for path, kind, told in cases:
        with pytest.raises(kind, match=told):
            build(path, out)
    assert not (out / MANIFEST).exists()


def test_configs_that_cannot_be_met(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_bytes=1,000"):
        build(base, tmp_path / "family", max_bytes=1000)
    with pytest.raises(ConfigError, match="the base has 0 to 5"):
        build(base, tmp_path / "family", candidates=[{"quantization": "Q8_0", "prune": [9]}])


def test_the_old_family_survives_a_rebuild_that_fails(
    base: Path, tmp_path: Path, file_limit: FileLimit
) -> None:
    out = tmp_path / "family"
    first = build(base, out)
    with file_limit(100_000), pytest.raises(DiskFullError):
        build(base, out, candidates=[{"quantization": "F16"}])
    with pytest.raises(ConfigError):
        build(base, out, max_bytes=1000)
    assert Family.load(out) == first


REMOTE = RemoteTier(name="far", url="http://localhost:1/v1", model="m")


@pytest.fixture
def extended(base: Path, tmp_path: Path) -> Family:
    """A built family with an adopted tier, "five", that is the smallest, and a remote one."""
    out = tmp_path / "family"
    build(base, out, candidates=[{"quantization": "Q8_0"}])
    other = tmp_path / "five.gguf"
    quantize(base, other, "Q4_0", pruned_layers=(1, 2, 3, 4), threads=1)
    family = adopt_tier(out, other, measure=False)
    family.model_copy(update={"remotes": (REMOTE,)}).save(out)
    return Family.load(out)


OTHER: dict[str, Any] = {
    "imatrix": False,
    "candidates": [{"quantization": "Q5_0", "name": "q8_0"}, {"quantization": "Q5_1"}],
}
"""Of the extended family: one of its names with another content, and a new one."""


def check_rebuilt(family: Family, before: Family) -> None:
    out = family.folder
    assert Family.load(out) == family
    assert family.tiers[0].name == "five"
    assert {tier.name for tier in family.tiers[1:]} == {"q8_0", "q5_1"}
    assert family.remotes == before.remotes
    assert family.tier("five") == before.tier("five")
    assert family.tier("q8_0").sha256 != before.tier("q8_0").sha256
    assert not before.path("q8_0").exists() and strays(out) == []


def test_a_disk_that_fills_up_while_publishing_leaves_the_old_family_whole(
    base: Path, extended: Family, file_limit: FileLimit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError("this disk has no hard links")

    def limited(*args: Any) -> Family:
        with file_limit(20_000):
            return publish(*args)

    out = extended.folder
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_link)
        patch.setattr("tierwise.compression.build.publish", limited)
        with pytest.raises(DiskFullError, match=r"q[58]_\w+(-[0-9a-f]{8})?\.gguf"):
            build(base, out, **OTHER)
    assert Family.load(out) == extended
    check_rebuilt(build(base, out, **OTHER), extended)


def test_ended_anywhere_while_publishing(
    base: Path, extended: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first file that gets its name, then at the second, and so on."""
    replace, out = Path.replace, extended.folder
    for files in range(100):
        left = files

        def dying(self: Path, target: Path) -> Path:
            nonlocal left
            if (left := left - 1) < 0:
                raise KeyboardInterrupt
            return replace(self, target)

        def ended(*args: Any) -> Family:
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", dying)
                return publish(*args)

        monkeypatch.setattr("tierwise.compression.build.publish", ended)
        with suppress(KeyboardInterrupt):
            build(base, out, **OTHER)
        family = Family.load(out)  # the old one or the new one
        assert family == extended or family.tier("q8_0") != extended.tier("q8_0")
        assert family.remotes == extended.remotes
        assert family.tier("five") == extended.tier("five")
        if left >= 0:
            break
    assert files > 4
    check_rebuilt(family, extended)


def test_a_remote_tier_that_is_added_while_files_are_copied_stays(
    base: Path, extended: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connecting(*_: object) -> None:
        more = REMOTE.model_copy(update={"name": "further"})
        extended.model_copy(update={"remotes": (REMOTE, more)}).save(extended.folder)
        raise OSError("this disk has no hard links")

    monkeypatch.setattr(os, "link", connecting)
    family = build(base, extended.folder, **OTHER)
    assert [remote.name for remote in family.remotes] == ["far", "further"]
    assert Family.load(extended.folder) == family


def test_a_damaged_tier_costs_the_family_nothing_else(base: Path, extended: Family) -> None:
    out = extended.folder
    with extended.path("q8_0").open("r+b") as file:
        file.write(b"?")
    check_rebuilt(build(base, out, **OTHER), extended)


def test_an_adopted_tier_that_is_damaged_is_left_out(base: Path, extended: Family) -> None:
    with extended.path("five").open("r+b") as file:
        file.write(b"?")
    family = build(base, extended.folder, **OTHER)
    assert Family.load(extended.folder) == family
    assert {tier.name for tier in family.tiers} == {"q8_0", "q5_1"}
    assert "gone or damaged" in family.dropped["five"]
    assert extended.path("five").is_file()  # it is the user's


def test_it_is_told_what_a_build_will_replace(base: Path, extended: Family) -> None:
    reporter = Recorder()
    family = build(
        base, extended.folder, reporter, candidates=[{**OTHER["candidates"][0], "name": "five"}]
    )
    assert "the adopted tier 'five' gives way if one is built" in reporter.notes
    assert family.tier("five").lineage.origin == "built"
    assert extended.path("five").is_file()
    (extended.folder / MANIFEST).write_text("{")
    build(base, extended.folder, reporter)
    assert any("cannot be read and will be replaced" in note for note in reporter.notes)


def test_a_remote_tier_keeps_its_name(base: Path, extended: Family) -> None:
    out = extended.folder
    remote = REMOTE.model_copy(update={"name": "q4_0"})
    extended.model_copy(update={"remotes": (remote,)}).save(out)
    reporter = Recorder()
    with pytest.raises(ConfigError, match="a tier 'q4_0', and the family has a remote tier"):
        build(base, out, reporter, candidates=[{"quantization": "Q4_0"}])
    assert reporter.titles == ["Reading the base model"]


@pytest.mark.parametrize(
    ("limit", "failed"),
    [
        (0, "Observing activations"),
        (4_000, "Observing activations"),
        (100_000, "Making q8_0"),
        (400_000, "Reading held-out text with the base"),
    ],
)
def test_a_full_disk_stops_a_build_that_then_goes_on(
    base: Path, tmp_path: Path, file_limit: FileLimit, limit: int, failed: str
) -> None:
    out = tmp_path / "family"
    options = {"held_out_tokens": 1024, "candidates": [{"quantization": "Q8_0"}]}
    reporter = Recorder()
    with file_limit(limit), pytest.raises(DiskFullError, match="run the same command again"):
        build(base, out, reporter, **options)
    assert reporter.titles[-1] == failed
    assert not (out / MANIFEST).exists()
    assert not list(out.rglob("*.part")) and not list(out.rglob("*.f16"))
    again = Recorder()
    family = build(base, out, again, **options)
    assert family == Family.load(out) and strays(out) == []
    finished = set(reporter.titles[1:-1])
    assert not finished & set(again.titles)


SCRIPT = """
import contextlib, json, os, signal, sys, threading, time
from tierwise.compression.build import build_family
from tierwise.compression.recipe import BuildConfig
base, out, config, victim, how = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def interrupt():
    time.sleep(0.05)
    print("interrupting", flush=True)
    os.kill(os.getpid(), signal.SIGINT)

class Reporter:
    @contextlib.contextmanager
    def stage(self, title):
        print(title, flush=True)
        if title == victim and how == "interrupt":
            threading.Thread(target=interrupt).start()
        if title == victim and how == "start":
            die()
        yield lambda text, share: die() if (title, how) == (victim, "middle") else None
    def note(self, text):
        pass

build_family(base, out, BuildConfig.make(**json.loads(config)), reporter=Reporter())
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(base: Path) -> Run:
    """Builds in a process of its own, which dies in the stage called ``victim``."""

    def run(
        out: Path, victim: str = "", how: str = "start", **options: Any
    ) -> subprocess.CompletedProcess[str]:
        config = json.dumps({**PINNED, **options})
        command = [sys.executable, "-c", SCRIPT, str(base), str(out), config, victim, how]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("how", ["start", "middle"])
def test_killed_in_every_stage_it_goes_on(base: Path, tmp_path: Path, run: Run, how: str) -> None:
    """One build, killed again and again: in the next stage each time."""
    uninterrupted = build(base, tmp_path / "whole")  # from here on, speeds are known
    out = tmp_path / "family"
    stages = ["Reading the base model"] if how == "start" else []
    stages += ["Observing activations", "Making q8_0", "Making d5-q4_0"]
    first, *others = (f"{{}} {name}" for name in ("q8_0", "d5-q4_0"))
    for tier in (first, *others):
        stages.append(tier.format("Tool tasks with"))
        stages += ["Reading held-out text with the base"] if tier is first else []
        stages.append(tier.format("Divergence of"))
    titles: list[str] = []
    for stage in stages:
        dead = run(out, stage, how)
        assert dead.returncode == -signal.SIGKILL, (stage, dead.stderr)
        assert not (out / MANIFEST).exists()
        titles += dead.stdout.splitlines()
    done = run(out)
    assert done.returncode == 0, done.stderr
    titles += done.stdout.splitlines()
    assert fingerprint(Family.load(out)) == fingerprint(uninterrupted)
    assert strays(out) == []
    # Each was killed once and finished once, and never done again. (Held-out text is read
    # anew for every run that compares.)
    repeated = {"Reading the base model", "Reading held-out text with the base"}
    assert {titles.count(stage) for stage in stages if stage not in repeated} == {2}


@pytest.mark.slow
def test_killed_while_speed_is_measured(base: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "family"
    options = {"candidates": [{"quantization": "Q5_1"}]}
    dead = run(out, "Speed of q5_1", **options)
    assert dead.returncode == -signal.SIGKILL and not (out / MANIFEST).exists()
    reporter = Recorder()
    build(base, out, reporter, **options)
    assert reporter.titles == [
        "Reading the base model",
        "Speed of q5_1",
        "Tool tasks with q5_1",
        "Reading held-out text with the base",
        "Divergence of q5_1",
        "KV cache of q5_1 in q8_0",
    ]


@pytest.mark.parametrize("stage", ["Observing activations", "Speed of q5_0"])
def test_ctrl_c_is_answered_and_the_build_goes_on(
    base: Path, tmp_path: Path, run: Run, stage: str
) -> None:
    out = tmp_path / "family"
    options = {"calibration_tokens": 20_000, "candidates": [{"quantization": "Q5_0"}]}
    stopped = run(out, stage, "interrupt", **options)
    assert stopped.stdout.splitlines()[-2:] == [stage, "interrupting"]
    assert stopped.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert "ignored" not in stopped.stderr
    assert stopped.returncode in (130, -signal.SIGINT)
    assert not (out / MANIFEST).exists()
    reporter = Recorder()
    family = build(base, out, reporter, **options)
    assert stage in reporter.titles and family == Family.load(out)


def test_a_build_that_was_killed_while_publishing_goes_on(base: Path, tmp_path: Path) -> None:
    """All files are in their places, the manifest is not."""
    out = tmp_path / "family"
    first = build(base, out)
    (out / MANIFEST).unlink()
    (out / WORK / "done-last.json").unlink()
    for name in ("base-logprobs.f16", "tier-0.gguf.part", "activations-0.npz.part"):
        (out / WORK / name).write_bytes(b"left by an earlier one")
    reporter = Recorder()
    assert fingerprint(build(base, out, reporter)) == fingerprint(first)
    assert reporter.titles == ["Reading the base model"]
    assert strays(out) == []


def test_files_linked_to_their_places_are_linked_once(base: Path, tmp_path: Path) -> None:
    """Killed between linking and tidying up: the stage's file and the tier's are the same."""
    out = tmp_path / "family"
    first = build(base, out)
    (out / MANIFEST).unlink()
    for record in (out / WORK).glob("tier-*.json"):
        sha256 = json.loads(record.read_text())["sha256"]
        tier = next(tier for tier in first.tiers if tier.sha256 == sha256)
        record.with_suffix(".gguf").hardlink_to(first.path(tier))
    assert fingerprint(build(base, out)) == fingerprint(first)
    assert strays(out) == []


def test_a_tier_knows_its_model(base: Path, tmp_path: Path) -> None:
    family = build(base, tmp_path / "family")
    for tier in family.tiers:
        with Model(family.path(tier), no_alloc=True) as model:
            assert tier.parameters == model.parameters
            assert tier.kv_bytes_per_token == model.kv_bytes_per_token
            assert tier.context_tokens == model.context_tokens == 512
