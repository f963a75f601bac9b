"""Students of a tiny base: pruned, taught and exported; killed anywhere, the same come out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from build_tools import Recorder
from tiny_models import write_tiny_checkpoint, write_tiny_gguf

from tierwise.compression.distillation.config import DistillConfig, StudentRecipe
from tierwise.compression.distillation.students import Student, make_students
from tierwise.compression.plan import plan_tiers
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.source import resolve_base
from tierwise.compression.stages import Stages
from tierwise.compression.tier_source import base_source, student_source
from tierwise.runtime.errors import ConfigError, UnsupportedModelError
from tierwise.runtime.files import sha256_of
from tierwise.runtime.llama import Model

OPTIONS: dict[str, Any] = {
    "steps": 6,
    "tokens": 3_000,
    "document_tokens": 420,
    "micro_tokens": 1024,
    "answers": "gold",
    "on_policy": 0.3,
    "students": [{"layers": 5}, {"layers": 4, "quantization_aware": "Q4_0", "ffn": 0.5}],
}
TITLES = [
    "Reading the weights of tiny",
    "Collecting documents",
    "Listening to the teacher",
    "Pruning tiny",
    "Teaching d5",
    "Exporting d5",
]

SHAPE = ("feed_forward_length", "attention.head_count_kv")

SCRIPT = """
import contextlib, json, os, signal, sys
from pathlib import Path
from tierwise.compression.distillation.config import DistillConfig
from tierwise.compression.distillation.students import make_students
from tierwise.compression.source import resolve_base
from tierwise.compression.stages import Stages
base, work, options, victim, how = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Reporter:
    @contextlib.contextmanager
    def stage(self, title):
        if (title, how) == (victim, "start"):
            die()
        yield lambda text, share: die() if (title, how) == (victim, "middle") else None
    def note(self, text):
        pass

config = DistillConfig.model_validate(json.loads(options))
make_students(resolve_base(base), config, Stages(Path(work)), Reporter(), threads=1)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf", layers=6, context=1024)


def students(base: Path, work: Path, reporter: Recorder, **options: Any) -> tuple[Student, ...]:
    config = DistillConfig.model_validate({**OPTIONS, **options})
    return make_students(resolve_base(str(base)), config, Stages(work), reporter, threads=1)


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Student, ...]]:
    work = tmp_path_factory.mktemp("work")
    reporter = Recorder()
    found = students(base, work, reporter)
    assert reporter.titles[:6] == TITLES
    return work, found


def test_students_are_smaller_taught_and_exported(made: tuple[Path, tuple[Student, ...]]) -> None:
    _, (large, small) = made
    assert (large.name, small.name) == ("d5", "d4-f64")
    assert len(large.pruned_layers) == 1
    assert set(large.pruned_layers) < set(small.pruned_layers) and len(small.pruned_layers) == 2
    assert (large.quantization, small.quantization) == (None, "Q4_0")
    assert (large.ffn_channels, small.ffn_channels) == (None, 64)
    for student, layers in ((large, 5), (small, 4)):
        with Model(student.gguf, no_alloc=True) as model:
            assert model.layers == layers
            assert model.chat_template
        record = student.distillation
        assert record.steps == 3 and record.tokens > 0 and record.documents
        assert record.kl_before > 0 and record.kl_after > 0 and record.curve
        assert record.quantization_aware == student.quantization
    assert large.distillation.kl_after < large.distillation.kl_before


def test_a_second_call_finds_them(base: Path, made: tuple[Path, tuple[Student, ...]]) -> None:
    work, found = made
    reporter = Recorder()
    assert students(base, work, reporter) == found
    assert reporter.titles == []
    # More students go on from those that are there.
    more = [*OPTIONS["students"], {"layers": 4}]
    reporter = Recorder()
    assert students(base, work, reporter, students=more, steps=9)[:2] == found
    assert reporter.titles[-1] == "Exporting d4-f64-n2" and "Teaching d5" not in reporter.titles


@pytest.mark.slow
@pytest.mark.parametrize("how", ["start", "middle"])
def test_killed_in_every_stage_the_same_students_come_out(
    base: Path, made: tuple[Path, tuple[Student, ...]], tmp_path: Path, how: str
) -> None:
    for victim in TITLES if how == "start" else TITLES[2:5]:
        command = [sys.executable, "-c", SCRIPT, str(base), str(tmp_path)]
        dead = subprocess.run(
            [*command, json.dumps(OPTIONS), victim, how],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert dead.returncode == -signal.SIGKILL, (victim, dead.stderr)
    found = students(base, tmp_path, Recorder())
    wanted = [sha256_of(student.gguf) for student in made[1]]
    assert [sha256_of(student.gguf) for student in found] == wanted


def test_a_damaged_student_is_made_again(base: Path, tmp_path: Path) -> None:
    options = {"students": [{"layers": 5}], "steps": 1}
    (first,) = students(base, tmp_path, Recorder(), **options)
    wanted = sha256_of(first.gguf)
    first.gguf.write_bytes(first.gguf.read_bytes()[:-1] + b"x")
    reporter = Recorder()
    (again,) = students(base, tmp_path, reporter, **options)
    assert sha256_of(again.gguf) == wanted and reporter.titles == ["Exporting d5"]


def test_a_teacher_with_another_tokenizer_is_refused(base: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", family="smollm")
    with pytest.raises(UnsupportedModelError, match="has another tokenizer than 'tiny'"):
        students(base, tmp_path / "work", Recorder(), teacher_model=str(other))
    with pytest.raises(ConfigError, match="set hidden to 0"):
        students(base, tmp_path / "work", Recorder(), teacher_model=str(other), hidden=1.0)


def test_another_model_of_the_family_can_teach(base: Path, tmp_path: Path) -> None:
    teacher = write_tiny_gguf(tmp_path / "big.gguf", layers=7, context=1024, seed=5)
    options = {"students": [{"layers": 5}], "steps": 2, "teacher_model": str(teacher)}
    (student,) = students(base, tmp_path / "work", Recorder(), **options)
    assert student.distillation.teacher_sha256 == sha256_of(teacher)


def test_a_transcript_that_is_not_there(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no transcript '.*talks\.jsonl'"):
        students(base, tmp_path, Recorder(), transcripts=[tmp_path / "talks.jsonl"])


def test_recipes_that_cannot_be(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot have 9 of the base's 6 layers"):
        students(base, tmp_path, Recorder(), students=[{"layers": 9}])
    with pytest.raises(ConfigError, match="from the largest to the smallest"):
        students(base, tmp_path, Recorder(), students=[{"layers": 4}, {"layers": 5}])
    assert StudentRecipe(layers=0.85).layers_of(30) == 26
    assert StudentRecipe(layers=20).layers_of(30) == 20
    assert StudentRecipe(prune=(3, 4, 4)).layers_of(30) == 28


def test_widths_are_shares_of_the_base_and_not_of_the_student_before(
    base: Path, tmp_path: Path
) -> None:
    recipes = [{"ffn": 0.75}, {"ffn": 0.5}]
    found = students(base, tmp_path, Recorder(), students=recipes, steps=2, on_policy=0.0)
    assert [(one.name, one.ffn_channels) for one in found] == [("d6-f96", 96), ("d6-f64", 64)]


def test_students_of_one_shape_have_names_of_their_own(base: Path, tmp_path: Path) -> None:
    recipes = [
        {"ffn": 0.75, "kv_groups": 1},
        {"ffn": 0.74, "quantization_aware": "Q4_0"},
        {"layers": 5},  # has what the one before it has
    ]
    options = {"students": recipes, "steps": 3, "on_policy": 0.0}
    reporter = Recorder()
    found = students(base, tmp_path, reporter, **options)
    assert [one.name for one in found] == ["d6-f96-h1", "d6-f96-h1-n2", "d5-f96-h1"]
    assert {"Teaching d6-f96-h1-n2", "Exporting d6-f96-h1-n2"} < set(reporter.titles)
    for student in found:
        with Model(student.gguf, no_alloc=True) as model:
            shape = (model.metadata[f"{model.architecture}.{key}"] for key in SHAPE)
            assert tuple(map(int, shape)) == (student.ffn_channels, student.kv_heads) == (96, 1)
    assert students(base, tmp_path, reporter, **options) == found
    plan = plan_tiers(
        [base_source(base, sha256_of(base), 6), *map(student_source, found)],
        file_type="F16",
        config=BuildConfig(),
    )
    assert {"d6-f96-h1-q8_0", "d6-f96-h1-n2-q4_0"} < {one.name for one in plan.candidates}
