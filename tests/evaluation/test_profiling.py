"""Profiles: measured in a child process, kept per machine, estimated where none was measured."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_models import write_tiny_gguf

from tierwise.evaluation.profiling import _run_child, measure_profile
from tierwise.runtime.errors import (
    ConfigError,
    DamagedModelError,
    EngineError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from tierwise.runtime.family import Base, Family, Tier
from tierwise.runtime.files import sha256_of
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.profile import (
    Profile,
    estimated_profile,
    family_profiles,
    load_profile,
    machine_fingerprint,
    save_profile,
)

MIB = 2**20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIERWISE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def tier(name: str, size: int = 100, quantization: str = "Q8_0", parameters: int = 100) -> Tier:
    return Tier(
        name=name,
        file=f"{name}.gguf",
        sha256=f"{ord(name[0]):064x}",
        bytes=size * MIB,
        parameters=parameters * 1_000_000,
        layers=2,
        context_tokens=8192,
        kv_bytes_per_token=1024,
        lineage=Lineage(origin="built", quantization=quantization),
    )


def profile(of: Tier, **changes: object) -> Profile:
    fields: dict[str, object] = {
        "tier_sha256": of.sha256,
        "machine": machine_fingerprint(),
        "threads": 2,
        "prefill_tokens_per_s": 200.0,
        "decode_tokens_per_s": 50.0,
        "load_s": 0.4,
        "resident_bytes": of.bytes + 20 * MIB,
        "context_tokens": 2048,
        "measured_at": "2025-01-01T00:00:00+00:00",
        "runs": 3,
    }
    return Profile.model_validate(fields | changes)


def test_a_tiny_model_is_measured(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", width=128, context=2048)
    seen: list[tuple[str, float]] = []
    found = measure_profile(
        path, sha256_of(path), threads=1, runs=2, progress=lambda *step: seen.append(step)
    )
    assert found.machine == machine_fingerprint() and found.tier_sha256 == sha256_of(path)
    assert (found.threads, found.runs, found.context_tokens) == (1, 2, 2048)
    assert found.prefill_tokens_per_s > found.decode_tokens_per_s > 1
    assert 0 < found.load_s < 5 and not found.estimated
    need = predict_memory(path, 2048).total_bytes
    assert need / 3 < found.resident_bytes < need + 30 * MIB
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert seen[0] == ("load", 0.0) and seen[-1] == ("done", 1.0)
    stages = {"load", "warm-up", "speed", "steps", "KV cache of q8_0", "done"}
    assert {stage for stage, _ in seen} == stages
    assert list(found.step_s) == [1, 2, 4, 8, 16] and list(found.sequences_s) == [1, 2, 4, 8]
    step = 1 / found.decode_tokens_per_s
    assert found.step_s[1] == pytest.approx(step, rel=3)
    # More work, but less than one by one.
    assert found.step_s[1] < found.step_s[16] < 16 * 3 * found.step_s[1]
    assert found.sequences_s[1] < found.sequences_s[8]
    assert found.kv_q8_0 is not None
    assert 0.01 < found.kv_q8_0.prefill < 100 and 0.01 < found.kv_q8_0.decode < 100
    save_profile(found)
    assert load_profile(found.tier_sha256) == found


def test_a_short_context_is_enough(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "short.gguf", context=256)
    found = measure_profile(path, "0" * 64, threads=1, runs=1)
    assert found.context_tokens == 256
    assert found.kv_q8_0 is None  # heads of 16 values


def test_steps_that_have_no_room_are_left_out(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "short.gguf", context=256)
    found = measure_profile(path, "0" * 64, threads=1, runs=1, context_tokens=4)
    assert list(found.step_s) == list(found.sequences_s) == [1, 2, 4]


def test_a_file_that_cannot_be_loaded_says_so_as_ever(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"gone\.gguf"):
        measure_profile(tmp_path / "gone.gguf", "0" * 64, threads=1)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(DamagedModelError, match=r"bad\.gguf"):
        measure_profile(tmp_path / "bad.gguf", "0" * 64, threads=1)
    path = write_tiny_gguf(tmp_path / "new.gguf", architecture="llama99")
    with pytest.raises(UnsupportedModelError, match="llama99"):
        measure_profile(path, "0" * 64, threads=1)


@pytest.mark.parametrize("option", ["threads", "context_tokens", "runs"])
def test_senseless_arguments_are_refused(tmp_path: Path, option: str) -> None:
    arguments: dict[str, Any] = {"threads": 1, option: 0}
    with pytest.raises(ConfigError, match=f"{option} must be at least 1, got 0"):
        measure_profile(tmp_path / "any.gguf", "0" * 64, **arguments)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.write(2, b'GGML_ASSERT failed\\n'); os.abort()", r"SIGABRT.*GGML_ASSERT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"SIGKILL.*memory runs out"),
        ("import sys; sys.exit('no luck')", r"exit code 1\. It said last: no luck"),
        ('print(\'{"stage": "load", "done": 0}\')', r"exit code 0.*\(nothing\)"),
        ("print('hello from a driver')", r"exit code 0"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_a_child_that_dies_is_reported(code: str, told: str) -> None:
    with pytest.raises(EngineError, match=re.compile(f"'x.gguf' failed.*{told}")):
        _run_child([sys.executable, "-c", code], Path("x.gguf"), None)


def test_a_profile_says_how_long_a_call_takes() -> None:
    known = profile(tier("a"))
    assert known.seconds(100, 25, cold=False) == pytest.approx(1.0)
    assert known.seconds(100, 25, cold=True) == pytest.approx(1.4)
    assert known.seconds(0, 0, cold=False) == 0


def test_profiles_are_kept_per_machine(home: Path) -> None:
    known = profile(tier("a"))
    assert load_profile(known.tier_sha256) is None
    path = save_profile(known)
    assert path == home / "profiles" / machine_fingerprint() / f"{known.tier_sha256}.json"
    assert load_profile(known.tier_sha256) == known
    elsewhere = profile(tier("b"), machine="0" * 16)
    save_profile(elsewhere)
    assert load_profile(elsewhere.tier_sha256) is None


def test_a_profile_from_before_steps_were_measured_is_read() -> None:
    known = profile(tier("a"))
    path = save_profile(known)
    new = {"step_s", "sequences_s", "kv_q8_0"}
    path.write_text(known.model_dump_json(exclude=new))
    assert load_profile(known.tier_sha256) == known
    assert (known.step_s, known.sequences_s, known.kv_q8_0) == ({}, {}, None)


def test_a_profile_that_cannot_be_trusted_is_no_profile() -> None:
    known = profile(tier("a"))
    path = save_profile(known)
    for text in (b"", b"{}", b"\xff\xfe", path.read_bytes().replace(b"50.0", b"0.0")):
        path.write_bytes(text)
        assert load_profile(known.tier_sha256) is None
    other = profile(tier("b"))
    path.write_text(other.model_dump_json())  # another tier's, copied here
    assert load_profile(known.tier_sha256) is None


def test_numbers_that_make_no_sense_are_refused() -> None:
    for field in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        for value in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValidationError, match=field):
                profile(tier("a"), **{field: value})


def test_the_fingerprint_is_stable() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", machine_fingerprint())
    first = machine_fingerprint()
    machine_fingerprint.cache_clear()
    assert machine_fingerprint() == first


def test_an_estimate_scales_from_the_tier_most_alike() -> None:
    known = tier("a", size=200, quantization="Q8_0", parameters=100)
    near = tier("b", size=90, quantization="Q4_0", parameters=100)
    wanted = tier("c", size=100, quantization="Q8_0", parameters=50)
    fast = profile(near, prefill_tokens_per_s=900.0)
    steps = {"step_s": {1: 0.02}, "sequences_s": {1: 0.02}, "kv_q8_0": {"prefill": 1, "decode": 1}}
    found = estimated_profile(wanted, [(near, fast), (known, profile(known, **steps))])
    assert found.estimated and found.runs == 0 and found.tier_sha256 == wanted.sha256
    assert found.prefill_tokens_per_s == pytest.approx(400.0)  # half the parameters
    assert found.decode_tokens_per_s == pytest.approx(100.0)  # half the bytes
    assert found.load_s == pytest.approx(0.2)
    assert (found.step_s, found.sequences_s, found.kv_q8_0) == ({}, {}, None)  # never guessed
    assert found.resident_bytes == (100 + 20) * MIB


def test_an_estimate_from_nothing_is_rough_but_sane() -> None:
    small, large = (
        estimated_profile(tier("a", 100)),
        estimated_profile(tier("b", 8000, "F16", 4000)),
    )
    assert small.estimated and small.machine == machine_fingerprint()
    assert small.decode_tokens_per_s > large.decode_tokens_per_s
    assert small.prefill_tokens_per_s > large.prefill_tokens_per_s
    assert small.load_s < large.load_s
    assert large.resident_bytes == (8000 + 2) * MIB


def test_a_family_has_a_profile_for_every_tier() -> None:
    tiers = (tier("a", 50), tier("b", 100))
    base = Base(
        name="tiny",
        source="tests",
        sha256="0" * 64,
        architecture="llama",
        parameters=1,
        layers=2,
        context_tokens=8192,
        vocab_size=291,
        tokenizer_sha256="0" * 64,
    )
    family = Family(created="2025-01-01T00:00:00Z", tierwise="0", base=base, tiers=tiers)
    assert all(known.estimated for known in family_profiles(family).values())
    save_profile(profile(tiers[1]))
    found = family_profiles(family)
    assert list(found) == ["a", "b"]
    assert [found[name].estimated for name in "ab"] == [True, False]
    assert found["a"].decode_tokens_per_s == pytest.approx(100.0)
