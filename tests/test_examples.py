"""The examples run as they stand, on small families of scripted tiers."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from calibration_factory import by_kind, calibrated
from example_process import output_of
from family_factory import TierSpec, make_family
from langchain_core.tools import BaseTool
from tiny_models import CHATML, write_scripted_gguf

from tierwise.routing.calibration_store import save_calibration

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBERED = sorted(EXAMPLES.glob("0*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def one_core() -> Iterator[None]:
    """For processes started meanwhile: llama.cpp's threads wait for each other in loops, which
    takes a hundred times as long where other processes want the same cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(name: str, *arguments: str, cwd: Path) -> str:
    """What an example prints; it must succeed."""
    with one_core():
        return output_of(EXAMPLES / name, *arguments, cwd=cwd, timeout=300)


# --- the scripts ------------------------------------------------------------------------


@pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
def test_every_example_compiles_and_has_a_main(path: Path, tmp_path: Path) -> None:
    py_compile.compile(str(path), cfile=str(tmp_path / "x.pyc"), doraise=True)
    text = path.read_text(encoding="utf-8")
    assert "\ndef main() -> None:\n" in text
    assert text.endswith('\nif __name__ == "__main__":\n    main()\n')
    assert f"python examples/{path.name}" in text


def test_the_examples_are_numbered() -> None:
    assert [path.name[:2] for path in NUMBERED] == [f"{n:02}" for n in range(1, len(NUMBERED) + 1)]


def written(name: str, **arguments: str) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def tiers(folder: Path, script: str | dict[str, str], *, context: int = 4096) -> list[TierSpec]:
    """A small and a large one, which write calls as they are told to: in few tokens."""
    specs = []
    for name, kl in (("small", 0.05), ("large", 0.0)):
        path = folder / f"{name}.gguf"
        write_scripted_gguf(path, script, context=context, name=name, chat_template=CHATML)
        # The example's tight budget goes by the size of the file, and expects that what is
        # cached takes little beside it.
        os.truncate(path, 12 * 2**20)
        specs.append(TierSpec(name, path, kl=kl, prefill=1e5, decode=1e4))
    return specs


def test_routing_is_explained(tmp_path: Path) -> None:
    script = written("get_weather", city="Paris")
    family = make_family(tmp_path / "family", tiers(tmp_path, script, context=8192))
    shown = run("03_route_calls.py", str(family.folder), cwd=tmp_path)
    assert shown.startswith("Not calibrated: ")
    assert shown.count("→ ") >= 4
    assert '{"name": "get_weather", "arguments": {"city": "Paris"}}' in shown


ONE_REQUEST = {
    "": "I do not know.",
    "Calculate": written("calculate", expression="12 * 7"),
    "84": "That is what it comes to.",
}
"""Of a tier that knows of one request of the example only; "84" is in the tool's result."""


def agent_runs(shown: str) -> list[str]:
    """What the example agent printed of each of its runs, which must have gone well."""
    runs = shown.split("\n== ")[1:]
    assert len(runs) == 3
    for one in runs:
        assert "12 * 7" in one and "84" in one and "That is what it comes to." in one
        assert "gave up" not in one
    return runs


def test_a_family_is_calibrated_once_and_its_agent_goes_by_that(tmp_path: Path) -> None:
    """The tiers answer alike, so that there is nothing to route by; the build's measurements, which
    say that the large one is a little better, count beside so few calls."""
    family = make_family(tmp_path / "family", tiers(tmp_path, ONE_REQUEST, context=8192))
    first = run("02_calibrate.py", str(family.folder), "12", cwd=tmp_path)
    assert "✓ Asking every tier" in first
    assert "12 calls that every tier answered: 12 of tools-0" in first
    verdict = next(line for line in first.splitlines() if line.startswith("Calibrated on"))
    assert verdict.startswith("Calibrated on 12 calls: do not route, because only ")
    again = run("02_calibrate.py", str(family.folder), "12", cwd=tmp_path)
    assert "Asking" not in again and verdict in again
    shown = run("04_langchain_agent.py", str(family.folder), cwd=tmp_path)
    assert shown.startswith(verdict)
    ample, tight = agent_runs(shown)[:2]
    assert "reach the quality floor" in ample and "reach the quality floor" in tight
    assert "[small]" in tight and "[large]" not in tight


def test_an_agent_over_tiers_that_differ(tmp_path: Path) -> None:
    """By its calibration the small tier fails at what is hard, and hello is not."""
    small, large = tiers(tmp_path, ONE_REQUEST)
    slower = replace(large, prefill=2.5e4, decode=2.5e3)
    family = make_family(tmp_path / "family", [small, slower])
    save_calibration(family.folder, calibrated(family, by_kind))
    shown = run("04_langchain_agent.py", str(family.folder), cwd=tmp_path)
    assert shown.startswith("Calibrated on 640 calls: route. Each call goes by what was learned")
    always = agent_runs(shown)[-1]
    assert "[large]" in always and "[small]" not in always
    assert re.search(r"\n +(small|large) is the quickest of \d that reach the quality floor", shown)


# --- the agent's tools ------------------------------------------------------------------


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, BaseTool]:
    return {tool.name: tool for tool in load("agent_tools").make_tools(tmp_path)}


def test_there_are_four_tools(tools: dict[str, BaseTool]) -> None:
    assert sorted(tools) == ["calculate", "convert_units", "find_orders", "search_files"]
    assert all(tool.description for tool in tools.values())


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12 * 7", "84"),
        ("(17 + 5) * 3", "66"),
        ("36 / 8", "4.5"),
        ("-3 - -5", "2"),
        ("0.1 + 0.2", "0.3"),
    ],
)
def test_the_calculator(tools: dict[str, BaseTool], expression: str, result: str) -> None:
    assert tools["calculate"].invoke({"expression": expression}) == result


@pytest.mark.parametrize(
    "expression",
    ["1 / 0", "2 +", "x + 1", "__import__('os').getcwd()", "'a' * 3", "9 ** 9 ** 9", "", "[1]"],
)
def test_what_the_calculator_refuses(tools: dict[str, BaseTool], expression: str) -> None:
    told = tools["calculate"].invoke({"expression": expression})
    assert told.startswith("cannot work out")


@pytest.mark.parametrize(
    ("value", "source", "target", "result"),
    [
        (5, "miles", "kilometers", "8.047"),
        (80, "kilograms", "pounds", "176.4"),
        (12, "feet", "meters", "3.658"),
        (1, "Foot", " inches ", "12"),
        (3, "inch", "inch", "3"),
    ],
)
def test_units(
    tools: dict[str, BaseTool], value: float, source: str, target: str, result: str
) -> None:
    arguments = {"value": value, "from_unit": source, "to_unit": target}
    assert tools["convert_units"].invoke(arguments).split() == [result, target.strip()]


def test_an_unknown_unit_is_named(tools: dict[str, BaseTool]) -> None:
    for source, target in (("parsecs", "miles"), ("miles", "parsecs")):
        arguments = {"value": 1, "from_unit": source, "to_unit": target}
        assert "parsec" in tools["convert_units"].invoke(arguments)


def test_orders(tools: dict[str, BaseTool]) -> None:
    find = tools["find_orders"]
    assert find.invoke({"customer": "Dana Moss"}) == "2 lamp"
    assert find.invoke({"customer": "ivo"}) == "1 desk"
    assert find.invoke({"customer": "Nobody"}) == "no orders"
    assert find.invoke({"customer": "' or 1=1 --"}) == "no orders"


def test_files(tools: dict[str, BaseTool]) -> None:
    search = tools["search_files"]
    assert search.invoke({"word": "invoice"}) == "march.txt"
    assert search.invoke({"word": "BUDGET"}) == "plan.md"
    assert search.invoke({"word": "the"}) == "march.txt, plan.md"
    assert "zebra" in search.invoke({"word": "zebra"})
