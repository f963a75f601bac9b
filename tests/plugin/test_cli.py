"""Every command as a user runs it: real tiny family, plain and as JSON, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_calls import wait_until
from family_factory import TierSpec, make_family
from gguf_writer import CHATML
from rich.console import Console
from tiny_models import write_scripted_gguf, write_tiny_gguf
from typer.testing import CliRunner

import tierwise
from tierwise.compression.build import build_family
from tierwise.compression.recipe import BuildConfig
from tierwise.plugin.build_options import config_of
from tierwise.plugin.cli import app
from tierwise.plugin.rendering import RichReporter, family_json, family_table, make_console
from tierwise.runtime.family import Family
from tierwise.runtime.profile import family_profiles

COMMANDS = [
    "build", "adopt", "list", "show", "run", "explain", "calibrate", "replay", "learn",
    "connect", "disconnect", "doctor"
]  # fmt: skip
PYTHON = [sys.executable, "-m", "tierwise.plugin.cli"]
RECIPE = """
calibration_tokens: 256
held_out_tokens: 64
suite_tasks: 4
tiers: 2
threads: 1
candidates:
  - {quantization: Q8_0, name: good}
  - {quantization: Q4_0, name: small}
keep_all: true
"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"name": "now", "description": "The time"},
]

ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")

needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``home``, the base ``tiny.gguf``, a recipe, and the family made of them."""
    room = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERWISE_HOME", str(room / "home"))
        base = write_tiny_gguf(room / "tiny.gguf", context=4096)
        recipe = room / "recipe.yaml"
        recipe.write_text(RECIPE)
        build_family(base, room / "family", BuildConfig.load(recipe))
        yield room


@pytest.fixture
def family(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The family's folder, on a machine where its tiers were measured. Never write to it."""
    monkeypatch.setenv("TIERWISE_HOME", str(built / "home"))
    return built / "family"


@pytest.fixture
def copy(family: Path, tmp_path: Path) -> Path:
    """A copy that a test may change or damage."""
    return shutil.copytree(family, tmp_path / "copy")


def call(*args: object, stdin: str = "", code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def call_json(*args: object, stdin: str = "", code: int = 0) -> Any:
    return json.loads(call(*args, "--json", stdin=stdin, code=code).stdout)


def _steady(message: str) -> list[str]:
    """Its words, without seconds and joules: those are forecast for what else the machine does."""
    return re.sub(r"[\d.]+ (s|J)\b", r"some \1", message).split()


def fails(*args: object, stdin: str = "") -> str:
    """The message of a command that exits with 2; checks that --json says the same."""
    result = call(*args, stdin=stdin, code=2)
    assert "Traceback" not in result.stderr
    *_, message = result.stderr.split("error: ")
    document = call_json(*args, stdin=stdin, code=2)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"type", "message"}
    assert _steady(document["error"]["message"]) == _steady(message)
    return f"{document['error']['type']}: {document['error']['message']}"


# --- help -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str) -> None:
    text = call(command, "--help").stdout
    assert "--json" in text
    assert "JSON:" in text


def test_help_lists_the_commands_in_their_order() -> None:
    text = call("--help").stdout
    assert re.findall(rf"^│ ({'|'.join(COMMANDS)}) ", text, re.MULTILINE) == COMMANDS
    assert call(code=2).output.strip() == text.strip()


def test_help_loads_nothing_heavy() -> None:
    code = """
import json, sys
from tierwise.plugin.build_options import config_of
from tierwise.plugin.cli import app
try:
    app(["run", "--help"])
except SystemExit:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stderr)}
    heavy = {"llama_cpp", "torch", "transformers", "langchain", "langchain_core", "numpy"}
    assert loaded.isdisjoint(heavy | {"huggingface_hub", "jinja2", "psutil"})


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "tierwise", "nope"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2 and "Usage: tierwise [OPTIONS] COMMAND" in run.stderr


def test_version() -> None:
    assert call("--version").stdout == f"tierwise {tierwise.__version__}\n"


# --- build and adopt ------------------------------------------------------------------------


@pytest.mark.slow
def test_build_shows_stages_and_the_family_and_how_to_run_it(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "my family"
    done = call("build", built / "tiny.gguf", "--out", out, "--recipe", built / "recipe.yaml")
    assert re.search(r"^✓ Making good \d+\.\d s$", done.stderr, re.MULTILINE)
    assert re.search(r"^✓ Tool tasks with small \d+\.\d s$", done.stderr, re.MULTILINE)
    assert "✓" not in done.stdout
    assert done.stdout.startswith("tiny: 2 tiers, 331 kB, in ")
    assert f"Try it: tierwise run '{out}'" in done.stdout
    assert {tier.name for tier in Family.load(out).tiers} == {"good", "small"}

    again = call_json("build", built / "tiny.gguf", "--out", out, "--recipe", built / "recipe.yaml")
    assert [tier["name"] for tier in again["tiers"]] == [t.name for t in Family.load(out).tiers]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-bytes", "plenty"], "'plenty' is not a size"),
        (["--max-bytes", "1kB"], "no tier fits max_bytes=1,000"),
        (["--tiers", "0"], "'tiers' cannot be 0"),
        (["--recipe", "no.yaml"], "there is no recipe file 'no.yaml'"),
    ],
)
def test_build_refuses_options_that_make_no_sense(
    tiny_gguf: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    said = fails("build", tiny_gguf, "--out", tmp_path / "out", *options)
    assert said.startswith("ConfigError: ")
    assert message in said


def test_build_takes_text_to_teach_with_only_with_time_to_teach(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "text.txt"
    said = fails("build", tiny_gguf, "--out", tmp_path / "out", "--corpus", corpus)
    assert "ConfigError" in said and "--distill-minutes 60" in said
    said = fails("build", tiny_gguf, "--out", tmp_path / "out", "--distill-minutes", 0)
    assert "'distill.minutes' cannot be 0" in said
    said = fails("build", tiny_gguf, "--out", tmp_path / "out", "--effort", "much")
    assert "'effort' cannot be 'much'" in said


def test_build_options_make_one_config(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("distill: {minutes: 5, seed: 3}\ntiers: 4\n")
    taught = {"minutes": None, "transcripts": [tmp_path / "a.jsonl"], "corpus": []}
    config = config_of(recipe, taught, tiers=None, mixed=False)
    assert config.distill is not None and (config.tiers, config.mixed) == (4, False)
    assert (config.distill.minutes, config.distill.seed) == (5, 3)
    assert config.distill.transcripts == (tmp_path / "a.jsonl",)


def test_build_options_win_over_the_recipe(built: Path, tmp_path: Path) -> None:
    args = ["build", built / "tiny.gguf", "--out", tmp_path, "--recipe", built / "recipe.yaml"]
    assert "no tier fits max_bytes=5,000" in fails(*args, "--max-bytes", "5kB")


@pytest.mark.parametrize("base", ["./missing.gguf", "bundled:nothing", "no base"])
def test_build_names_a_base_that_is_not_there(tmp_path: Path, base: str) -> None:
    said = fails("build", base, "--out", tmp_path / "out")
    assert said.startswith("ModelNotFoundError: ")
    assert base.removeprefix("bundled:") in said


def test_build_in_a_place_that_cannot_be_written(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = fails("build", tiny_gguf, "--out", tmp_path / "file" / "out")
    assert said.startswith("NotADirectoryError: ")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 there")
def test_a_folder_whose_name_is_not_utf_8(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    call(
        "build", built / "tiny.gguf", "--out", folder / "family", "--recipe", built / "recipe.yaml"
    )
    (reply,) = call_json("run", folder / "family", "--prompt", "hi", "--max-tokens", 3)["replies"]
    assert reply["text"]
    shutil.copy(built / "tiny.gguf", folder)
    assert "is not UTF-8" in fails("build", folder / "tiny.gguf", "--out", tmp_path / "other")


def test_adopt_adds_a_tier(copy: Path, built: Path) -> None:
    shown = call_json("adopt", copy, built / "tiny.gguf", "--name", "whole", "--no-measure")
    assert "whole" in [tier["name"] for tier in shown["tiers"]]
    tier = next(tier for tier in shown["tiers"] if tier["name"] == "whole")
    assert (tier["origin"], tier["task_success"], tier["kl_mean_nats"]) == ("adopted", None, None)
    assert tier["this_machine"]["estimated"] is True

    table = call("show", copy).stdout
    assert "~ estimated" in table
    assert re.search(r"^task success .*–$|^task success .* – ", table, re.MULTILINE)


def test_adopt_says_what_it_cannot_take(copy: Path, tmp_path: Path) -> None:
    assert "ModelNotFoundError" in fails("adopt", copy, tmp_path / "no.gguf", "--no-measure")
    other = write_scripted_gguf(tmp_path / "other.gguf", "Hello")
    said = fails("adopt", copy, other, "--no-measure")
    assert said.startswith("UnsupportedModelError: ")
    assert Family.load(copy).tiers == Family.load(copy).tiers
    assert not (copy / "other.gguf").exists()


# --- show and list --------------------------------------------------------------------------


def test_show_has_every_figure(family: Path) -> None:
    text = call("show", family).stdout
    rows = {line[:34].strip(): line[34:].split() for line in text.splitlines()}
    facts = {"small": ("124", "Q4_0"), "good": ("207", "Q8_0")}
    assert set(rows["tier"]) == set(facts)  # in the order of their measured seconds
    assert list(zip(rows["file"][::2], rows["quantization"], strict=True)) == [
        facts[name] for name in rows["tier"]
    ]
    labels = ("layers", "KL mean, nats", "KL 99.9 %, nats", "top-1 agreement", "load, s")
    labels += ("prefill, tokens/s", "decode, tokens/s", "resident, MB")
    assert {label: len(rows[label]) for label in labels} == dict.fromkeys(labels, 2)
    assert "agent call (300 + 40 tokens), s" in rows
    assert re.search(r"task success \(95 % interval\) +\d+% \(\d+%–\d+%\)", text)
    assert "licence apache-2.0" in text
    assert "~" not in text


def test_show_marks_estimates_where_nothing_was_measured(
    family: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIERWISE_HOME", str(tmp_path / "another machine"))
    text = call("show", family).stdout
    assert re.search(r"decode, tokens/s +~[\d,]+ +~[\d,]+", text)
    assert "~ estimated" in text


def test_show_json_is_family_json(family: Path) -> None:
    shown = call_json("show", family)
    loaded = Family.load(family)
    assert shown == family_json(loaded, family_profiles(loaded))
    assert shown["total_bytes"] == sum(tier["bytes"] for tier in shown["tiers"])
    assert shown["base"]["dequantized_from"] is None
    for tier in shown["tiers"]:
        assert Path(tier["path"]).stat().st_size == tier["bytes"]
        assert set(tier["task_success"]) == {"value", "n", "low", "high"}
        assert tier["this_machine"]["decode_tokens_per_s"] > 0
        assert tier["this_machine"]["estimated"] is False


def test_the_table_is_whole_at_80_columns(family: Path) -> None:
    loaded = Family.load(family)
    out = StringIO()
    Console(file=out, width=80).print(family_table(loaded, family_profiles(loaded)))
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_tiers_that_have_no_room_in_a_line_stand_below(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    text = call("show", family).stdout
    assert sorted(re.findall(r"^tier +(\w+)$", text, re.MULTILINE)) == ["good", "small"]
    assert "…" not in text


def test_what_was_dropped_is_shown_with_the_reason(copy: Path) -> None:
    family = Family.load(copy)
    family.model_copy(update={"dropped": {"q2_k": "too [far] from the base"}}).save(copy)
    assert "q2_k: too [far] from the base" in call("show", copy).stdout
    assert call_json("show", copy)["dropped"] == {"q2_k": "too [far] from the base"}


def test_a_missing_family_is_named(tmp_path: Path) -> None:
    for command in (["show"], ["run"], ["explain"]):
        rest = ["hello"] if command == ["explain"] else []
        said = fails(*command, tmp_path, *rest)
        assert said.startswith("FamilyNotFoundError: ")
        assert str(tmp_path) in said


def test_a_damaged_tier_is_named(copy: Path) -> None:
    with (copy / "good.gguf").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"damaged!")
    for args in (["show", copy], ["run", copy, "--prompt", "hi"], ["explain", copy, "hi"]):
        said = fails(*args)
        assert said.startswith("DamagedTierError: ")
        assert "'good'" in said


def test_list_finds_families_two_levels_deep(family: Path, tmp_path: Path) -> None:
    for place in ("a", "b/c", "b/d/too-deep", ".hidden/e"):
        shutil.copytree(family, tmp_path / place)
    with (tmp_path / "b" / "c" / "small.gguf").open("ab") as file:
        file.write(b"more")
    found = call_json("list", tmp_path)["families"]
    assert [item["folder"] for item in found] == [str(tmp_path / "a"), str(tmp_path / "b" / "c")]
    assert found[0] == {
        "folder": str(tmp_path / "a"),
        "base": "tiny",
        "tiers": [tier.name for tier in Family.load(family).tiers],
        "total_bytes": sum(tier.bytes for tier in Family.load(family).tiers),
        "error": None,
    }
    assert "the manifest says" in found[1].pop("error")
    assert found[1] == {
        "folder": str(tmp_path / "b" / "c"),
        "base": None,
        "tiers": None,
        "total_bytes": None,
    }

    text = " ".join(call("list", tmp_path).stdout.split())
    assert "folder base tiers size error" in text
    assert "331 kB" in text
    assert "the manifest says" in text


def test_list_compares_hashes_only_when_asked(copy: Path) -> None:
    with (copy / "good.gguf").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"damaged!")
    assert call_json("list", copy)["families"][0]["error"] is None
    assert "sha256" in call_json("list", "--verify", copy)["families"][0]["error"]


def test_list_looks_here_and_names_a_family_once(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy.parent)
    assert [item["folder"] for item in call_json("list")["families"]] == ["copy"]
    assert len(call_json("list", ".", copy, "copy")["families"]) == 1


def test_list_of_nothing(tmp_path: Path) -> None:
    assert "no families under" in call("list", tmp_path).stdout
    assert call_json("list", tmp_path) == {"families": []}


# --- run and explain ------------------------------------------------------------------------

SHORT = ["--max-tokens", "8", "--threads", "1"]


def test_run_answers_one_prompt(family: Path) -> None:
    done = call("run", family, "--prompt", "hello", *SHORT)
    assert done.stdout.strip()
    (line,) = done.stderr.splitlines()
    tier, reason, seconds = line.split(" · ")
    assert tier in ("good", "small")
    assert tier in reason
    assert re.fullmatch(r"predicted \d+\.\d\d s, took \d+\.\d\d s", seconds)


def test_run_may_tell_a_model_not_to_think(tmp_path: Path) -> None:
    told = CHATML.replace(
        "{% if add_generation_prompt %}",
        "{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}"
        "{% if add_generation_prompt %}",
    )
    script = {"": "Well, let me see.", "/no_think": "Hi."}
    path = write_scripted_gguf(tmp_path / "a.gguf", script, chat_template=told)
    folder = make_family(tmp_path / "family", [TierSpec("only", path)]).folder
    for options, text in (((), "Well, let me see."), (("--reasoning", "off"), "Hi.")):
        (reply,) = call_json("run", folder, "--prompt", "hi", *options)["replies"]
        assert reply["text"] == text


def test_run_takes_the_type_of_keys_and_values(family: Path) -> None:
    """The tiny models' heads are too small for q8_0, and that is what it says."""
    assert 'Use kv_type="f16"' in fails("run", family, "--prompt", "hi", "--kv-type", "q8_0")
    assert "is not one of" in call("run", family, "--kv-type", "q4", code=2).stderr


def test_replies_before_a_turn_that_cannot_be_are_kept(family: Path) -> None:
    lines = f"hello\n{'word ' * 20_000}\nbye\n"
    done = call_json("run", family, "--tier", "small", *SHORT, stdin=lines, code=2)
    first, last = done["replies"]
    assert first["text"] and last["error"]["type"] == "ContextOverflowError"


def test_run_reads_a_conversation_from_stdin(family: Path) -> None:
    done = call_json("run", family, "--tier", "small", *SHORT, stdin="hello\n\nis Paris\n")
    assert done["family"] == str(family)
    first, second = done["replies"]
    assert (first["prompt"], second["prompt"]) == ("hello", "is Paris")
    assert (first["tier"], first["reason"]) == ("small", "small was asked for by name")
    assert first["finish_reason"] in ("stop", "length")
    assert 0 < first["usage"]["completion_tokens"] <= 8
    assert first["usage"]["cached_tokens"] == 0
    assert second["usage"]["cached_tokens"] > 0  # the same conversation
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]
    for reply in (first, second):
        assert reply["predicted_s"] > 0
        assert reply["actual_s"] > 0
        assert reply["decision"]["tier"] == "small"


def test_run_through_a_real_pipe(family: Path) -> None:
    done = subprocess.run(
        [*PYTHON, "run", str(family), *SHORT],
        input=b"hello\nis Paris\n",
        capture_output=True,
        check=True,
    )
    assert done.stderr.decode().count("predicted") == 2
    assert len(done.stdout) > 2


def test_what_is_written_holds_no_control_characters(family: Path) -> None:
    text = call("run", family, "--prompt", "hello", "--max-tokens", "200", "--threads", "1").stdout
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_commands_within_a_conversation(family: Path) -> None:
    lines = ["/explain", "hello", "/tier small", "hello", "/explain", "/tier", "/?", "/exit", "no"]
    done = call("run", family, *SHORT, stdin="\n".join(lines))
    said = done.stderr.splitlines()
    assert said[0] == "nothing was asked yet"
    assert "from now on: small" in said
    assert any(line.startswith("small · small was asked for by name") for line in said)
    assert any(line.startswith("→ small") for line in said)
    assert "from now on: whichever tier will do" in said
    assert "/exit leaves" in said[-1]
    assert done.stderr.count("predicted") == 2


def test_the_system_prompt_counts(family: Path) -> None:
    plain = call_json("explain", family, "hello")
    longer = call_json("explain", family, "hello", "--system", "Answer in French.")
    assert longer["prompt_tokens"] > plain["prompt_tokens"]
    spoken = call_json("run", family, "--prompt", "hello", "--system", "Answer in French.", *SHORT)
    assert spoken["replies"][0]["usage"]["prompt_tokens"] == longer["prompt_tokens"]


def test_a_tier_that_is_not_there(family: Path) -> None:
    said = fails("run", family, "--tier", "best", "--prompt", "hi")
    assert said.startswith("ConfigError: ")
    assert "'best'" in said
    assert "good" in said
    assert "no tier 'best'" in fails("run", family, stdin="/tier best\n")


@pytest.mark.parametrize(
    ("option", "error"),
    [
        (["--budget-memory", "much"], "ConfigError: budget 'memory' cannot be 'much'"),
        (["--budget-memory", "1kB"], "NoFeasibleTierError: "),
        (["--budget-seconds", "0"], "ConfigError: budget 'seconds_per_call'"),
        (["--budget-seconds", "0.00001"], "NoFeasibleTierError: "),
        (["--quality", "2"], "ConfigError: budget 'quality'"),
        (["--budget-joules", "0.00001"], "NoFeasibleTierError: "),
        (["--price", "hour=1"], "ConfigError: --price 'hour=1' is no price"),
        (["--price", "second"], "ConfigError: --price 'second' is no price"),
        (["--price", "second=much"], "ConfigError: budget 'price_per_second' cannot be 'much'"),
        (["--mean-seconds", "1"], "ConfigError: mean_seconds=1.0 cannot be given"),
        (["--mean-seconds", "1", "--price", "joule=1"], "ConfigError: a budget with mean_seconds"),
    ],
)
def test_budgets_are_checked_and_kept(family: Path, option: list[str], error: str) -> None:
    assert fails("run", family, "--prompt", "hi", *option).startswith(error)
    assert fails("explain", family, "hi", *option).startswith(error)


def test_options_out_of_range_are_usage_errors(family: Path) -> None:
    for option in (["--max-tokens", "0"], ["--temperature", "-1"], ["--threads", "0"]):
        assert "Invalid value" in call("run", family, "--prompt", "hi", *option, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build"], "Missing argument 'base'"),
        (["nope"], "No such command 'nope'"),
        (["show", "here", "--nope"], "No such option: --nope"),
        (["run", "here", "--max-tokens", "0"], "Invalid value for '--max-tokens'"),
    ],
)
def test_usage_errors_are_json_where_json_is_asked_for(arguments: list[str], message: str) -> None:
    assert message in call_json(*arguments, code=2)["error"]["message"]
    assert "Usage: " in call(*arguments, code=2).stderr


def test_a_reply_ends_though_the_model_finds_no_end(family: Path) -> None:
    (reply,) = call_json("run", family, "--prompt", "x y z")["replies"]
    assert (reply["finish_reason"], reply["usage"]["completion_tokens"]) == ("length", 1024)


def test_quality_moves_the_choice(family: Path) -> None:
    best = call_json("explain", family, "hello", "--quality", "1")
    assert best["tier"] == "good"
    text = call("explain", family, "hello", "--quality", "1").stdout
    assert re.search(r"^→ good .* chosen", text, re.MULTILINE)
    assert "verdict" in text


def test_explain_takes_tools(family: Path, tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    plain = call_json("explain", family, "hello")
    tools = call_json("explain", family, "hello", "--tools", file)
    assert tools["prompt_tokens"] > plain["prompt_tokens"]
    assert tools["difficulty"] > plain["difficulty"]
    assert {forecast["tier"] for forecast in tools["forecasts"]} == {"good", "small"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not valid JSON"),
        ("{}", "must hold a list"),
        ("[1]", "tool 0 of"),
        ('[{"description": "nameless"}]', "has no name"),
        ('[{"name": "a", "parameters": "all"}]', "must be a JSON schema"),
    ],
)
def test_a_tools_file_that_is_none(
    family: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "tools.json"
    if content is not None:
        file.write_text(content)
    said = fails("explain", family, "hello", "--tools", file)
    assert said.startswith("ConfigError: ")
    assert message in said


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    said = call("--debug", "show", tmp_path, code=2).stderr
    assert said.startswith("Traceback")
    assert "\nerror: no family in " in said


# --- at the terminal ------------------------------------------------------------------------


# A terminal sends Ctrl-C to the session that it belongs to.
TAKE_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from tierwise.plugin.build_options import config_of
from tierwise.plugin.cli import app
app()
"""


READLINE_S = 0.5
"""CPython's readline hears a Ctrl-C that comes between its prompt and its select() only at the
next key. No person is that quick, and a process that is busy for longer is waited for."""


class Terminal:
    """A command on a pseudo-terminal; ``seen`` is what a person would have read."""

    def __init__(self, *args: object) -> None:
        import pty

        self.fd, child = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        command = [sys.executable, "-c", TAKE_TERMINAL, *map(str, args)]
        self.process = subprocess.Popen(
            command,
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
            start_new_session=True,
        )
        os.close(child)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def press_ctrl_c_at_the_prompt(self) -> None:
        """As soon as a key is waited for: the main thread sleeps, at every look for a while."""
        process, since = psutil.Process(self.process.pid), time.monotonic()
        while time.monotonic() - since < READLINE_S:
            if process.status() != psutil.STATUS_SLEEPING:
                since = time.monotonic()
            time.sleep(0.01)
        self.type("\x03")

    def wait_for(self, pattern: str, seconds: float = 300) -> None:
        """Reads until the pattern turns up; what came before it is forgotten."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} not in {self.seen!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    read = os.read(self.fd, 4096).decode(errors="replace")
                except OSError:  # the other side is closed
                    read = ""
                self.seen = ESCAPES.sub("", self.seen + read)
        self.seen = self.seen[found.end() :]


@contextmanager
def terminal(*args: object) -> Iterator[Terminal]:
    shown = Terminal(*args)
    try:
        yield shown
    finally:
        shown.process.kill()
        shown.process.wait()
        os.close(shown.fd)


@needs_terminal
def test_a_chat(family: Path) -> None:
    with terminal("run", family, *SHORT) as shown:
        shown.wait_for("/exit leaves")
        shown.wait_for("> ")
        shown.type("hello\n")
        shown.wait_for(r"· predicted .* took \d")
        shown.type("/tier none\n")
        shown.wait_for("error: this family has no tier 'none'")
        shown.type("/tier small\n/explain\n")
        shown.wait_for("from now on: small")
        shown.wait_for("verdict")
        shown.type("hello again\n")
        shown.wait_for("small was asked for by name")
        shown.type("/exit\n")
        assert shown.process.wait(timeout=300) == 0


@needs_terminal
def test_ctrl_c_stops_the_reply_and_a_second_one_leaves(family: Path) -> None:
    with terminal("run", family, "--threads", "1", "--max-tokens", "3500") as shown:
        shown.wait_for("> ")
        shown.type("hello\n")
        shown.wait_for("hello\r\n.{20}")  # the reply has begun
        shown.type("\x03")
        shown.wait_for("stopped; Ctrl-C once more leaves")
        shown.type("/explain\n")  # any other line in between, and it is a first one again
        shown.wait_for("nothing was asked yet")
        shown.wait_for("> ")
        shown.press_ctrl_c_at_the_prompt()
        shown.wait_for("Ctrl-C once more leaves")
        shown.wait_for("> ")
        shown.press_ctrl_c_at_the_prompt()
        assert shown.process.wait(timeout=300) == 130


@needs_terminal
def test_end_of_input_leaves(family: Path) -> None:
    with terminal("run", family, *SHORT) as shown:
        shown.wait_for("> ")
        shown.type("\x04")
        assert shown.process.wait(timeout=300) == 0


@needs_terminal
def test_ctrl_c_in_a_build_says_how_to_go_on(built: Path, tmp_path: Path) -> None:
    # As many tokens as it likes: the observing takes minutes.
    recipe = tmp_path / "long.yaml"
    recipe.write_text("calibration_tokens: 2000000\nthreads: 1\n")
    args = ["build", built / "tiny.gguf", "--out", tmp_path / "out", "--recipe", recipe]
    with terminal(*args) as shown:
        shown.wait_for("Observing activations")
        time.sleep(0.5)
        shown.type("\x03")
        shown.wait_for("✗ Observing activations")
        shown.wait_for("stopped; the same command goes on where it was")
        assert shown.process.wait(timeout=300) == 130
    assert not (tmp_path / "out" / "family.json").exists()


# --- doctor ---------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("offline")
def test_doctor(family: Path) -> None:
    text = call("doctor", family).stdout
    assert re.search(r"^✓ +python ", text, re.MULTILINE)
    assert re.search(r"^! +network .*HF_HUB_OFFLINE", text, re.MULTILINE)
    assert "→ unset HF_HUB_OFFLINE" in text
    assert re.search(r"^✓ +tier good +fits: predicted \d+ MB", text, re.MULTILINE)
    found = call_json("doctor")
    assert found["ok"] is True
    assert set(found["findings"][0]) == {"name", "status", "detail", "cure"}


@pytest.mark.usefixtures("offline")
def test_doctor_exits_with_1_if_something_fails(tmp_path: Path) -> None:
    assert re.search(r"^✗ +family ", call("doctor", tmp_path, code=1).stdout, re.MULTILINE)
    assert call_json("doctor", tmp_path, code=1)["ok"] is False


@pytest.mark.usefixtures("offline")
def test_what_failed_is_told_apart_where_there_is_only_ascii(tmp_path: Path) -> None:
    run = subprocess.run(
        [*PYTHON, "doctor", str(tmp_path)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert re.search(r"^\+ +python ", run.stdout, re.MULTILINE)
    assert re.search(r"^x +family ", run.stdout, re.MULTILINE)
    assert "-> do what the message says" in run.stdout
    assert "?" not in run.stdout


# --- the reporter ---------------------------------------------------------------------------


def test_the_reporter_draws_a_bar_on_a_terminal_and_leaves_a_line() -> None:
    out = StringIO()
    reporter = RichReporter(Console(file=out, force_terminal=True, width=100))
    with reporter.stage("Making [q4_0]") as progress:
        progress("3 of 7 tensors", 3 / 7)
        wait_until(lambda: "3 of 7 tensors" in ESCAPES.sub("", out.getvalue()))
    reporter.note("dropped: q5_k [hardly smaller]")
    text = ESCAPES.sub("", out.getvalue())
    assert "3 of 7 tensors" in text
    assert "━" in text
    assert re.search(r"✓ Making \[q4_0\] \d+\.\d s\n", text)
    assert text.endswith("dropped: q5_k [hardly smaller]\n")


def test_the_reporter_marks_a_stage_that_failed() -> None:
    out = StringIO()
    reporter = RichReporter(Console(file=out))
    with pytest.raises(ValueError, match="broken"), reporter.stage("Reading"):
        raise ValueError("broken")
    assert re.fullmatch(r"✗ Reading \d+\.\d s\n", out.getvalue())


def test_piped_tables_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", StringIO())
    assert make_console().width == 200
    monkeypatch.setenv("COLUMNS", "90")
    assert make_console().width == 90
