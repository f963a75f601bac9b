"""``tierwise calibrate`` and ``tierwise replay``, with real tiers that are right or wrong."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from calibration_factory import by_kind, calibrated, scripted_pair, two_tiers
from family_factory import TierSpec, make_family
from scripted_model import FRUIT, write_scripted_gguf
from typer.testing import CliRunner

from tierwise import Budget, ChatTierwise
from tierwise.plugin.calibration_report import REPORT, calibration_html
from tierwise.plugin.calibration_text import calibration_text
from tierwise.plugin.cli import app
from tierwise.routing.calibration_store import load_calibration

RIGHT = dict(list(FRUIT.items())[:4])
"""What both tiers know; the small one answers the rest wrongly."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    wrong = {name: FRUIT[name] if name in RIGHT else "No idea." for name in FRUIT}
    small = write_scripted_gguf(tmp_path / "small.gguf", wrong, context=2048)
    large = write_scripted_gguf(tmp_path / "large.gguf", FRUIT, context=2048)
    specs = [TierSpec("small", small, kl=0.1), TierSpec("large", large)]
    return make_family(tmp_path / "family", specs).folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    lines = [
        {"prompt": f"{words} {fruit}", "expected": reply}
        for words in ("Tell me of the", "What is a", "Describe one")
        for fruit, reply in FRUIT.items()
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def run(*arguments: Any) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_without_answers_the_tier_nearest_to_the_base_is_right(
    prompts: Path, tmp_path: Path
) -> None:
    """However quick it is."""
    wrong = {name: FRUIT[name] if name in RIGHT else "No idea." for name in FRUIT}
    best = write_scripted_gguf(tmp_path / "best.gguf", FRUIT, context=2048)
    slow = write_scripted_gguf(tmp_path / "slow.gguf", wrong, context=2048)
    specs = [TierSpec("best", best, kl=0.01), TierSpec("slow", slow, kl=0.1)]
    folder = make_family(tmp_path / "family", specs).folder
    lines = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        del line["expected"]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = json.loads(run("calibrate", folder, "--data", prompts, "--json"))
    means = dict(zip(found["tiers"], found["means"], strict=True))
    assert means == pytest.approx({"best": 1.0, "slow": 4 / 6})


def test_own_prompts_are_asked_once_and_learned_from(
    folder: Path, prompts: Path, tmp_path: Path
) -> None:
    table = tmp_path / "outcomes.csv"
    found = json.loads(run("calibrate", folder, "--data", prompts, "--export", table, "--json"))
    assert found["tiers"] == ["small", "large"] and found["unasked"] == 0
    assert found["means"] == pytest.approx([4 / 6, 1.0])
    assert not found["verdict"]["route"] and "at least 50" in found["verdict"]["reason"]
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + 2 * 18
    assert Path(found["report"]).is_file()
    # Nothing is asked a second time, and no time is needed for that.
    again = json.loads(run("calibrate", folder, "--data", prompts, "--minutes", 0, "--json"))
    assert again == found
    prices = found["prices"]
    assert [one["mean_quality"] for one in prices] == [0.9, 0.95, 0.98]
    assert all(one["per_second"] > 0 and one["n"] > 0 for one in prices)
    shown = run("calibrate", folder, "--data", prompts)
    assert re.search(
        r"^mean_quality +price of a second +kept +seconds a call$", shown, re.MULTILINE
    )
    assert "do not route, always use" in shown and "small" in shown and "66.7%" in shown
    assert calibration_text(load_calibration(folder)) in shown


def test_it_may_be_asked_of_models_that_think(folder: Path) -> None:
    options = ("--suite", "tools:6", "--json")
    assert set(json.loads(run("calibrate", folder, *options))["suites"]) == {"tools-0"}
    thinking = json.loads(run("calibrate", folder, *options, "--reasoning", "on"))
    assert set(thinking["suites"]) == {"tools-0", "tools-0-reasoning-on"}


def test_a_calibrated_family_is_routed_by_it(folder: Path, prompts: Path) -> None:
    found = json.loads(run("calibrate", folder, "--data", prompts, "--json"))
    usual = dict(zip(found["tiers"], found["usual"], strict=True))
    assert 4 / 6 < usual["small"] < usual["large"] < 1.0  # drawn together: six prompts are few
    with ChatTierwise(family=str(folder), threads=1) as model:
        decision = model.explain("Tell me of the apple")
    chances = {forecast.tier: forecast.success for forecast in decision.forecasts}
    assert chances == pytest.approx(usual)
    half = run("explain", folder, "Tell me of the apple", "--mean-quality", 0.5)
    assert "; a second is priced at " in half and "of the best tier's successes" in half
    explained = json.loads(run("explain", folder, "Tell me of the apple", "--json"))
    assert {f["tier"]: f["success"] for f in explained["forecasts"]} == pytest.approx(chances)


def test_what_cannot_be_calibrated_is_said(folder: Path, tmp_path: Path) -> None:
    def told(*arguments: Any) -> str:
        done = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
        assert done.exit_code == 2
        return done.stderr

    assert "there is no suite 'poems'" in told(folder, "--suite", "poems")
    assert "nowhere" in told(tmp_path / "nowhere")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    assert "holds no prompts" in told(folder, "--data", empty)


def test_a_log_under_another_budget(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    with ChatTierwise(family=str(folder), threads=1, decision_log=log, model="large") as model:
        for fruit in ("apple", "banana"):
            model.invoke(f"Tell me of the {fruit}")
    found = json.loads(run("replay", log, "--quality", 0, "--json"))
    assert found["calls"] == 2 and found["tiers"]["then"] == {"large": 2}
    assert "2 calls" in run("replay", log, "--budget-seconds", 60)


def test_a_log_under_other_prices(tmp_path: Path) -> None:
    folder, log = scripted_pair(tmp_path, FRUIT).folder, tmp_path / "log.sqlite"
    best = Budget(quality=1.0)
    with ChatTierwise(family=str(folder), threads=1, decision_log=log, budget=best) as model:
        for fruit in ("apple", "banana"):
            model.invoke(f"Tell me of the {fruit}")
    kept = ("--quality", 0, "--price", "second=0.000001")  # success counts, and time hardly
    dear = ("--quality", 0, "--price", "joule=1000", "--power", "saver")
    for options, tier in ((kept, "large"), (dear, "small")):
        found = json.loads(run("replay", log, *options, "--json"))
        assert found["tiers"] == {"then": {"large": 2}, "now": {tier: 2}}
    assert found["joules"]["then"] > found["joules"]["now"] > 0
    assert " J then" in run("replay", log, "--budget-joules", 1e6)


class _Page(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for name, v in attributes if name in ("href", "src")]


def test_the_page_shows_front_use_and_reliability(tmp_path: Path) -> None:
    family = two_tiers(tmp_path)
    found = calibrated(family, by_kind)
    html = calibration_html(family, found)
    page = _Page()
    page.feed(html)
    assert page.tags.count("svg") >= 3 and "script" not in page.tags
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "base: route" in html
    for row in ("as many calls at random", "always small", "oracle"):
        assert html.count(row) >= 2  # in the plot and in the table
    assert re.search(r"<th scope=\"row\">100%</th>", html)
    empty = calibrated(two_tiers(tmp_path / "other"), by_kind, 12)
    said = calibration_html(family, empty)
    assert "do not route" in said and "too little to compare" in said
    assert REPORT == "calibration.html"


def test_names_are_escaped(tmp_path: Path) -> None:
    family = two_tiers(tmp_path)
    found = calibrated(family, by_kind, 120)
    base = family.base.model_copy(update={"name": "<script>alert(1)</script>"})
    html = calibration_html(family.model_copy(update={"base": base}), found)
    assert "<script>" not in html and "&lt;script&gt;" in html
