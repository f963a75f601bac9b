"""Outcomes of real tiers: right and wrong as scripted, kept, not run twice, told as a table."""

from __future__ import annotations

import csv
import json
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
from family_factory import TierSpec, make_family
from gguf_writer import CHATML_THINKING
from scripted_model import write_scripted_gguf

from tierwise.evaluation.collect import BLOCK, FIRST, TIMED, collect_outcomes, judge_by
from tierwise.evaluation.outcomes import COLUMNS, OUTCOMES, KnownTask, OutcomeStore, TierOutcome
from tierwise.evaluation.own_prompts import read_prompts
from tierwise.evaluation.success import REPLY_ROOM
from tierwise.evaluation.suites import Suite, load_suite, own_suite, with_reasoning
from tierwise.routing.calibration_fit import FEWEST_TO_LEARN
from tierwise.routing.splits import split
from tierwise.routing.verdict import FEWEST
from tierwise.runtime.errors import CalibrationError, ConfigError, DiskFullError
from tierwise.runtime.family import Family
from tierwise.runtime.message_json import call_from_json
from tierwise.runtime.pool import Pool


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small one knows one of the two answers."""
    folder = tmp_path_factory.mktemp("models")
    scripts = {
        "small": {"KEYA": "four", "KEYB": "dunno"},
        "large": {"KEYA": "four", "KEYB": "five"},
    }
    return {
        name: write_scripted_gguf(folder / f"{name}.gguf", script, name=name)
        for name, script in scripts.items()
    }


@pytest.fixture
def family(files: dict[str, Path], tmp_path: Path) -> Family:
    specs = [TierSpec(name, files[name]) for name in ("small", "large")]
    return make_family(tmp_path / "family", specs)


def suite(folder: Path, count: int = 20, *, expected: bool = True) -> Suite:
    lines = []
    for number in range(count):
        key, answer = (("KEYA", "four"), ("KEYB", "five"))[number % 2]
        line = {"prompt": f"question {number} {key}", "group": f"g{number // 4}"}
        lines.append(line | ({"expected": answer} if expected else {}))
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return own_suite(path)


def test_every_tier_answers_every_task_once(family: Family, tmp_path: Path) -> None:
    tasks = suite(tmp_path)
    shares: list[float] = []
    with OutcomeStore(family.folder / OUTCOMES) as store, Pool(family) as pool:
        left = collect_outcomes(
            family, [tasks], store, pool=pool, progress=lambda _, share: shares.append(share)
        )
        assert left == 0 and len(shares) == 40  # with every reply
        assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] == 1.0
        found = list(store.outcomes())
        assert len(found) == 40 and len(store.tasks()) == 20
        right = {
            tier.name: [one.passed for one in found if one.tier == tier.sha256]
            for tier in family.tiers
        }
        assert sum(right["small"]) == 10 and all(right["large"])
        timed = [one for one in found if one.seconds is not None]
        assert len(timed) == 2 * 2 * TIMED and all(one.seconds and one.seconds > 0 for one in timed)
        assert all(one.margins and one.completion_tokens for one in found)
        task = store.tasks()[0]
        assert call_from_json(task.call) in [one.call for one in tasks.tasks]
        assert {one.group for one in store.tasks()} == {f"g{number}" for number in range(5)}
        assert collect_outcomes(family, [tasks], store, pool=pool, progress=fail) == 0


def test_thoughts_have_room(tmp_path: Path) -> None:
    thought = "Well, let me see what was asked. " + "".join(
        f"Line {n} says {n * n}. " for n in range(70)
    )
    script = {"KEYA": f"<think>{thought}</think>four", "KEYB": "<think>Hm.</think>five"}
    path = write_scripted_gguf(
        tmp_path / "thinker.gguf", script, context=4096, chat_template=CHATML_THINKING
    )
    family = make_family(tmp_path / "family", [TierSpec("only", path)])
    tasks = suite(tmp_path, 4)
    with OutcomeStore(family.folder / OUTCOMES) as store, Pool(family) as pool:
        assert collect_outcomes(family, [tasks], store, pool=pool) == 0
        found = list(store.outcomes())
    assert [one.passed for one in found] == [True] * 4
    assert max(one.completion_tokens for one in found) > REPLY_ROOM


def test_tasks_are_asked_of_models_that_think_or_do_not() -> None:
    plain = load_suite("tools:3")
    thinking = with_reasoning(plain, "high")
    assert {task.call.reasoning for task in plain.tasks} == {"off"}
    assert {task.call.reasoning for task in thinking.tasks} == {"high"}
    assert thinking.name == f"{plain.name}-reasoning-high" and thinking.groups == plain.groups
    assert [task.id for task in thinking.tasks] == [task.id for task in plain.tasks]


def fail(text: str, share: float) -> None:
    raise AssertionError(f"{text} was run again")


def test_a_run_that_has_no_time_goes_on_later(family: Family, tmp_path: Path) -> None:
    tasks = suite(tmp_path)
    with OutcomeStore(family.folder / OUTCOMES) as store, Pool(family) as pool:
        assert collect_outcomes(family, [tasks], store, pool=pool, minutes=1e-9) == 20
        assert not list(store.outcomes())
        replies = 0

        def stop(_text: str, _share: float) -> None:
            nonlocal replies
            replies += 1
            if replies == BLOCK + 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collect_outcomes(family, [tasks], store, pool=pool, progress=stop)
        assert len(list(store.outcomes())) == BLOCK + 5, "all that was answered"
        assert collect_outcomes(family, [tasks], store, pool=pool) == 0
        assert len(list(store.outcomes())) == 40


def test_limited_time_is_not_overrun_by_whole_blocks(family: Family, tmp_path: Path) -> None:
    """After a few tasks it is known how many may follow; all tiers answer the same ones."""
    tasks = suite(tmp_path)
    with OutcomeStore(family.folder / OUTCOMES) as store, Pool(family) as pool:

        def slow(_text: str, _share: float) -> None:
            time.sleep(0.05)

        left = collect_outcomes(family, [tasks], store, pool=pool, minutes=0.8 / 60, progress=slow)
        small, large = (store.known(tasks.name, tier.sha256) for tier in family.tiers)
        assert small == large and FIRST <= len(small) < BLOCK and left == 20 - len(small)


@pytest.mark.parametrize("names", [("small", "large"), ("large", "small")])
def test_the_tier_nearest_to_the_base_is_the_reference_where_no_answer_is_given(
    files: dict[str, Path], tmp_path: Path, names: tuple[str, str]
) -> None:
    """Whichever is quicker."""
    kl = {"small": 0.2, "large": 0.01}
    specs = [TierSpec(name, files[name], kl=kl[name]) for name in names]
    family = make_family(tmp_path / "family", specs)
    tasks = suite(tmp_path, 6, expected=False)
    with OutcomeStore(family.folder / OUTCOMES) as store, Pool(family) as pool:
        collect_outcomes(family, [tasks], store, pool=pool)
        small, large = (family.tier(name).sha256 for name in ("small", "large"))
        assert all(one.passed for one in store.outcomes([large]))
        assert sum(one.passed for one in store.outcomes([small])) == 3


def test_who_says_nothing_is_no_reference(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    prompts = [{"prompt": "KEYA " + "too long " * 20_000}, {"prompt": "KEYA"}]
    path.write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    tasks = own_suite(path)
    with OutcomeStore(family.folder / OUTCOMES) as store, Pool(family) as pool:
        collect_outcomes(family, [tasks], store, pool=pool)
        for _ in range(2):
            passed = [one.passed for one in store.outcomes()]
            assert sorted(passed) == [False, False, True, True]
            judge_by(family.tiers[::-1], [tasks], store)
        # Whoever it was compared with before: nobody says anything to the first one.
        known = [replace(one, passed=True) for one in store.outcomes()]
        store.add([], known)
        judge_by(family.tiers[::-1], [tasks], store)
        assert passed == [one.passed for one in store.outcomes()]


def outcome(task: str = "a", tier: str = "t", *, passed: bool = True) -> TierOutcome:
    return TierOutcome("s", task, tier, passed, 0.5, None, 9, 0, 2, 1, (0.25, 0.5), {"text": "x"})


def test_tables(tmp_path: Path) -> None:
    with OutcomeStore(tmp_path / OUTCOMES) as store:
        store.add([KnownTask("s", "a", "g", {"prompt": "?"})], [outcome(), outcome(tier="u")])
        assert store.known("s", "t") == {"a"} and store.known("s", "z") == set()
        assert store.reply("s", "a", "t") == {"text": "x"} and store.reply("s", "b", "t") is None
        assert list(store.outcomes(["t"])) == list(store.outcomes(["t"], "s")) == [outcome()]
        assert not list(store.outcomes(suite="r")) and len(list(store.outcomes(suite="s"))) == 2
        assert store.export(tmp_path / "out.csv") == 2
        text = (tmp_path / "out.csv").read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines()))
        assert tuple(rows[0]) == ("group", *COLUMNS)
        assert (rows[0]["group"], rows[0]["margins"], rows[0]["joules"]) == ("g", "[0.25, 0.5]", "")
        with pytest.raises(ConfigError, match="xlsx"):
            store.export(tmp_path / "out.xlsx")


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with OutcomeStore(tmp_path / OUTCOMES) as store:
        store.add([KnownTask("s", "a", "g", {"prompt": "?"})], [outcome()])
        store.export(tmp_path / "out.parquet")
    (row,) = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["group"], row["passed"], row["seconds"]) == ("g", True, 0.5)


def test_all_or_nothing_is_written(tmp_path: Path) -> None:
    def rows() -> object:
        yield outcome("a")
        raise KeyboardInterrupt

    with OutcomeStore(tmp_path / OUTCOMES) as store:
        with pytest.raises(KeyboardInterrupt):
            store.add([], rows())  # type: ignore[arg-type]
        assert not list(store.outcomes())
        store.add([], [outcome("a")])
        assert len(list(store.outcomes())) == 1


def test_damaged_and_newer_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"no database" * 100)
    with pytest.raises(CalibrationError, match="Remove it"):
        OutcomeStore(tmp_path / "bad")
    with sqlite3.connect(tmp_path / "new") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(CalibrationError, match="newer Tierwise"):
        OutcomeStore(tmp_path / "new")
    with pytest.raises(DiskFullError, match=r"cannot be written: .* Make it writable"):
        OutcomeStore(tmp_path / "nowhere" / "x")


# --- suites ---------------------------------------------------------------------------------------


def test_suites_by_name() -> None:
    tools = load_suite("tools:24")
    assert len(tools.tasks) == len(set(tools.groups)) == 24
    assert tools == load_suite("tools:24") and tools.name != load_suite("tools:24", seed=1).name
    more = load_suite("tools:40")  # what was asked counts there too
    assert more.name == tools.name and all(task in more.tasks for task in tools.tasks)


def test_the_default_is_enough_to_decide_for_routing() -> None:
    """Tasks to learn from, and others to judge by, by the sizes that calibration wants."""
    found = load_suite("tools")
    parts = split(list(found.groups))
    assert len({found.groups[row] for row in parts.fit}) >= FEWEST_TO_LEARN
    assert len({found.groups[row] for row in parts.test}) >= FEWEST


def test_suites_that_are_not_there() -> None:
    for name in ("nothing", "tools:none", "tools:0"):
        with pytest.raises(ConfigError):
            load_suite(name)


def test_tasks_that_ask_the_same_are_of_one_group() -> None:
    found = load_suite("tools:1000")
    groups: dict[str, set[str]] = {}
    for task, group in zip(found.tasks, found.groups, strict=True):
        groups.setdefault(task.call.request, set()).add(group)
    assert len(groups) < 1000 and all(len(one) == 1 for one in groups.values())
    assert len(set(found.groups)) == len(groups)


def test_groups_stay_together(tmp_path: Path) -> None:
    found = suite(tmp_path, 40)
    changes = sum(a != b for a, b in zip(found.groups, found.groups[1:], strict=False))
    assert changes == len(set(found.groups)) - 1
    assert list(found.groups) != sorted(found.groups)
    assert {task.id for task in found.tasks} == {
        task.id for task in read_prompts(tmp_path / "mine.jsonl")
    }


def test_a_file_of_prompts_that_was_changed_is_another_suite(tmp_path: Path) -> None:
    first = suite(tmp_path, 4)
    assert suite(tmp_path, 4).name == first.name
    assert suite(tmp_path, 5).name != first.name
