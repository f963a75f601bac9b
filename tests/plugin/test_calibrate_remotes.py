"""``tierwise calibrate --remotes``: a server on loopback is asked, and routing goes by it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from calibration_factory import PLENTY
from family_factory import TierSpec, make_family
from openai_server import OpenAIServer, openai_server
from scripted_model import FRUIT, write_scripted_gguf
from typer.testing import CliRunner

from tierwise import Router
from tierwise.evaluation.outcomes import OUTCOMES, OutcomeStore
from tierwise.plugin.cli import app
from tierwise.routing.calibration_store import calibration_of, load_calibration
from tierwise.routing.labelled import labelled
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import family_profiles
from tierwise.runtime.remote import remote_profile
from tierwise.runtime.remote_tier import RemoteTier

LOCAL = {name: FRUIT[name] if at < 3 else "No idea." for at, name in enumerate(FRUIT)}
"""What the tier of this machine says: half of it is right."""

CALL = Call((Message("user", "Tell me of the banana"),), max_tokens=20)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server() as running:
        running.knows = dict(FRUIT)
        yield running


@pytest.fixture
def folder(tmp_path: Path, server: OpenAIServer) -> Path:
    file = write_scripted_gguf(tmp_path / "local.gguf", LOCAL, context=2048)
    family = make_family(tmp_path / "family", [TierSpec("local", file)])
    connect(family, RemoteTier(name="far", url=server.url, model="m", success=0.01, timeout_s=60))
    return family.folder


def connect(family: Family, *remotes: RemoteTier) -> Family:
    changed = family.model_copy(update={"remotes": remotes})
    changed.save(family.folder)
    return Family.load(family.folder)


def write_prompts(path: Path, *, expected: bool = True) -> Path:
    lines: list[Mapping[str, Any]] = [
        {"prompt": f"{words} {fruit}", **({"expected": reply} if expected else {})}
        for words in ("Tell me of the", "What is a", "Describe one")
        for fruit, reply in FRUIT.items()
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "mine.jsonl")


def run(*arguments: Any) -> tuple[dict[str, Any], str]:
    """What the command found, and what it said before."""
    done = CliRunner().invoke(app, ["calibrate", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def router_of(folder: Path, pool: Pool) -> Router:
    family = Family.load(folder)
    return Router(family, pool, probe=lambda: PLENTY, calibration=calibration_of(family))


def test_remote_tiers_are_asked_when_that_is_wanted(
    folder: Path, prompts: Path, server: OpenAIServer
) -> None:
    found, said = run(folder, "--data", prompts)
    assert found["tiers"] == ["local"] and not server.asked and "far" not in said
    server.knows["durian"] = "No idea."
    found, said = run(folder, "--data", prompts, "--remotes")
    assert f"far (m at {server.url}): 18 calls" in said
    assert found["tiers"] == ["local", "far"] and found["notes"] == []
    assert found["means"] == pytest.approx([3 / 6, 5 / 6])
    assert len(server.asked) == 18
    assert {asked["max_tokens"] for asked in server.asked} == {512}
    # Nothing is asked twice, and what is known counts without asking, too.
    again, said = run(folder, "--data", prompts, "--remotes")
    assert again == found and "far (m at" in said and ": 0 calls" in said
    assert run(folder, "--data", prompts)[0] == found
    assert len(server.asked) == 18
    html = Path(found["report"]).read_text(encoding="utf-8")
    assert "far" in html


def test_a_calibrated_remote_tier_has_the_chances_that_were_learned(
    folder: Path, prompts: Path
) -> None:
    family = Family.load(folder)
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        before = {f.tier: f for f in router_of(folder, pool).decide(CALL).forecasts}
        assert before["far"].success == 0.01  # as its owner said
        run(folder, "--data", prompts, "--remotes")
        router = router_of(folder, pool)
        after = {f.tier: f for f in router.decide(CALL).forecasts}
        chances = {name: forecast.success for name, forecast in after.items()}
        assert chances == pytest.approx({"local": 0.5, "far": 1.0})
        # Its speed is known, too: that of a server next door, and no guess any more.
        far = remote_profile(Family.load(folder).remotes[0])
        assert far.runs == 18 and not far.estimated
        assert after["far"].seconds != before["far"].seconds
        assert [one.name for one in router.better_than("local")] == ["far"]


def test_a_server_that_knows_less_is_no_better(
    folder: Path, prompts: Path, server: OpenAIServer
) -> None:
    server.knows = {}
    found, _ = run(folder, "--data", prompts, "--remotes")
    assert found["means"] == [0.5, 0.0]
    family = Family.load(folder)
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = router_of(folder, pool)
        assert [one.name for one in router.members] == ["far", "local"]
        assert [one.name for one in router.better_than("far")] == ["local"]
        assert router.better_than("local") == ()
        assert router.decide(CALL).tier == "local"


def test_its_seconds_are_those_that_its_calls_took(folder: Path, prompts: Path) -> None:
    run(folder, "--data", prompts, "--remotes")
    family = Family.load(folder)
    (far,) = family.remotes
    with OutcomeStore(folder / OUTCOMES) as store:
        data = labelled(store, [*family.tiers, far], family_profiles(family))
        took = [outcome.seconds for outcome in store.outcomes([far.sha256])]
    assert data.spent[:, 1].tolist() == took and min(took, default=0) > 0
    # Prompts are as long as this machine counts, and not the 11 tokens that the server says.
    with Pool(family, threads=1) as pool:
        assert len(pool.prompt(data.calls[0])) > 11


def test_a_server_out_of_reach_is_left_out_and_goes_on_later(
    folder: Path, prompts: Path, server: OpenAIServer
) -> None:
    server.mode = "broken"
    found, _ = run(folder, "--data", prompts, "--remotes")
    assert found["tiers"] == ["local"] and found["unasked"] == 0
    (note,) = found["notes"]
    assert note.startswith("far is left out: remote tier 'far' at http") and "500" in note
    server.mode = "ok"
    server.asked.clear()
    found, said = run(folder, "--data", prompts, "--remotes")
    assert found["tiers"] == ["local", "far"] and len(server.asked) == 18 and "18 calls" in said


def test_what_it_answered_before_it_failed_is_kept(
    folder: Path, tmp_path: Path, prompts: Path, server: OpenAIServer
) -> None:
    half = tmp_path / "half" / prompts.name
    half.parent.mkdir()
    server.knows["cherry"] = None  # a call that cannot be read is a wrong answer
    run(folder, "--data", prompts, "--remotes")
    (far,) = Family.load(folder).remotes
    with OutcomeStore(folder / OUTCOMES) as store:
        rows = list(store.outcomes([far.sha256]))
    assert len(rows) == 18 and sum(row.passed for row in rows) == 15
    # Other prompts, which it has not answered: without --remotes it takes no part, and is told.
    half.write_text("\n".join(prompts.read_text().splitlines()[:6]), encoding="utf-8")
    found, _ = run(folder, "--data", half)
    assert found["tiers"] == ["local"]
    assert found["notes"] == ["far is left out: it has not answered all of this (--remotes)"]
    assert len(server.asked) == 18


def test_the_best_tier_is_the_reference_where_no_answer_is_given(
    folder: Path, tmp_path: Path, server: OpenAIServer
) -> None:
    path = write_prompts(tmp_path / "open.jsonl", expected=False)
    alone, _ = run(folder, "--data", path)
    assert alone["means"] == [1.0]
    found, _ = run(folder, "--data", path, "--remotes")
    assert dict(zip(found["tiers"], found["means"], strict=True)) == {"local": 0.5, "far": 1.0}
    # What the server says nothing to, the next best is the reference of.
    connect(Family.load(folder))
    assert run(folder, "--data", path)[0]["means"] == [1.0]


def test_another_model_is_another_tier(folder: Path, prompts: Path, server: OpenAIServer) -> None:
    run(folder, "--data", prompts, "--remotes")
    family = Family.load(folder)
    (far,) = family.remotes
    assert calibration_of(family) is not None
    assert remote_profile(far).tier_sha256 == far.sha256
    renamed = connect(family, far.model_copy(update={"success": 0.5, "api_key_env": ""}))
    assert calibration_of(renamed) is not None and renamed.remotes[0].sha256 == far.sha256
    other = connect(family, far.model_copy(update={"model": "another"}))
    assert other.remotes[0].sha256 != far.sha256 and calibration_of(other) is None
    assert calibration_of(connect(family)) is None
    assert load_calibration(folder).tiers == ("local", "far")


def test_a_family_without_remote_tiers_cannot_ask_them(folder: Path, prompts: Path) -> None:
    connect(Family.load(folder))
    done = CliRunner().invoke(app, ["calibrate", str(folder), "--data", str(prompts), "--remotes"])
    assert done.exit_code == 2 and "no remote tiers to ask" in done.stderr
    assert "tierwise connect" in done.stderr
