"""What goes wrong while a family serves: files that rot, memory that others take, clocks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from calibration_factory import PLENTY, scripted_pair
from family_factory import TierSpec, make_family
from scripted_model import FRUIT
from tiny_models import write_tiny_gguf

from tierwise.routing.budget import Budget
from tierwise.routing.cascade import answer
from tierwise.routing.router import Router
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.errors import NoFeasibleTierError
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool
from tierwise.runtime.resources import Resources


class Machine:
    """A resource probe whose answer a test may change."""

    def __init__(self) -> None:
        self.now = PLENTY

    def __call__(self) -> Resources:
        return self.now


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return scripted_pair(tmp_path, FRUIT)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def router(family: Family, machine: Machine) -> Iterator[Router]:
    with Pool(family, probe=machine, threads=1) as pool:
        yield Router(family, pool, Budget(quality=1.0), probe=machine)


def ask(router: Router, fruit: str, **options: Any) -> tuple[str, str]:
    call = Call((Message("user", f"Tell me of the {fruit}"),), max_tokens=20)
    found = answer(router, call, **options)
    assert found.reply.text == FRUIT[fruit]
    return found.final.decision.tier, found.final.decision.reason


def test_a_file_that_rots_before_it_is_loaded(family: Family, router: Router) -> None:
    path = family.path("large")
    path.write_bytes(b"rot" * (path.stat().st_size // 3) + b"." * (path.stat().st_size % 3))
    assert ask(router, "apple")[0] == "small"
    call = Call((Message("user", "Tell me of the banana"),), max_tokens=20)
    large = router.decide(call).forecasts[1]
    assert not large.feasible and str(path) in large.verdict
    assert ask(router, "banana")[0] == "small"  # and the next call is answered as well


def test_weights_that_rot_behind_a_sound_header(
    family: Family, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    """Its size and its metadata are right: llama.cpp finds out when it loads the tensors."""
    path = family.path("large")
    data = path.read_bytes()
    at = data.index(b"output_norm.weight")
    path.write_bytes(data[:at] + b"outputXnorm.weight" + data[at + 18 :])
    with caplog.at_level(logging.WARNING, "tierwise"):
        assert ask(router, "apple")[0] == "small"


def test_a_file_that_goes_while_its_tier_serves(family: Family, router: Router) -> None:
    assert ask(router, "apple")[0] == "large"
    family.path("large").unlink()
    tier, _ = ask(router, "banana")
    assert tier == "small"
    family.path("small").unlink()
    call = Call((Message("user", "Tell me of the cherry"),), max_tokens=20)
    with pytest.raises(NoFeasibleTierError, match=r"small: .*is missing.*large: .*is missing"):
        answer(router, call)


def test_memory_that_others_take_and_give_back(tmp_path: Path, machine: Machine) -> None:
    files = [write_tiny_gguf(tmp_path / f"{n}.gguf", layers=n, context=2048) for n in (1, 40)]
    specs = [TierSpec("small", files[0], kl=0.1), TierSpec("large", files[1], prefill=500.0)]
    family = make_family(tmp_path / "sizes", specs)
    turns = [Message("user", "hello Paris")]
    with Pool(family, probe=machine, threads=1) as pool:
        router = Router(family, pool, Budget(quality=1.0), probe=machine)
        need = {f.tier: f.memory_bytes for f in router.decide(Call(tuple(turns))).forecasts}
        little = int(need["small"] * 1.5)
        assert little < need["large"]
        used = []
        for left in (little, PLENTY.available_bytes, little):
            machine.now = replace(PLENTY, available_bytes=left)
            found = answer(router, Call(tuple(turns), max_tokens=8))
            used.append(found.final.decision.tier)
            turns += [Message("assistant", found.reply.text or "."), Message("user", "and Rome?")]
    # What is loaded stays: the memory is this process's own by then.
    assert used == ["small", "large", "large"]


def test_the_wall_clock_may_jump(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for shift in (-7200.0, 86_400.0, -1e9):
        monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
        found = answer(
            router,
            Call((Message("user", "Tell me of the durian"),), max_tokens=20, timeout_s=30.0),
        )
        assert found.reply.text == FRUIT["durian"] and 0 < found.seconds < 30
