"""Variants that are really made, in a process of their own, while a router decides."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from calibration_factory import made_calibration
from engine_calls import wait_until
from family_factory import TierSpec, make_family, make_quality
from tiny_models import write_tiny_gguf

from tierwise.compression.derive import derive
from tierwise.routing.budget import Budget
from tierwise.routing.cascade import answer
from tierwise.routing.router import Router
from tierwise.routing.success import kept
from tierwise.routing.variants import PATIENCE, Deriver
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.errors import BuildError, DiskFullError, NoFeasibleTierError
from tierwise.runtime.family import Family
from tierwise.runtime.files import sha256_of
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.pool import Pool
from tierwise.runtime.resources import Resources
from tierwise.runtime.room import MARGIN_SHARE
from tierwise.runtime.variants import FOLDER, Variant, VariantStore, Wanted

CALL = Call((Message("user", "hello Paris"),), choices=("yes", "no"), max_tokens=100)


class Machine:
    """A machine whose memory other processes take and give back."""

    def __init__(self) -> None:
        self.pool: Pool | None = None
        self.left = 4 * 2**30

    def __call__(self) -> Resources:
        taken = sum(one.bytes for one in self.pool.resident().values()) if self.pool else 0
        return Resources(max(0, self.left - taken), 8 * 2**30, threads=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ggufs")
    return [
        write_tiny_gguf(folder / f"{n}.gguf", layers=n, width=256, ffn=512, context=2048)
        for n in (1, 8)
    ]


@pytest.fixture
def family(files: list[Path], tmp_path: Path) -> Family:
    grades = ("easy", "medium", "hard")
    specs = [
        TierSpec(name, file, kl, dict.fromkeys(grades, share), 4000, speed, speed / 10)
        for name, file, kl, share, speed in (
            ("small", files[0], 0.5, 0.4, 4000.0),
            ("large", files[1], 0.0, 0.9, 1000.0),
        )
    ]
    return make_family(tmp_path / "family", specs)


@pytest.fixture
def machine() -> Machine:
    return Machine()


Open = Callable[..., Router]


@pytest.fixture
def opened(machine: Machine) -> Iterator[Open]:
    routers: list[Router] = []

    def make(family: Family, deriver: Deriver | None = derive, **options: object) -> Router:
        # With f16 alone, so that no narrower keys make a tier fit.
        pool = Pool(family, probe=machine, threads=1, kv_type="f16")
        machine.pool = pool
        budget = Budget(quality=1.0)
        made = Router(family, pool, budget, probe=machine, deriver=deriver, **options)  # type: ignore[arg-type]
        routers.append(made)
        return made

    yield make
    for router in routers:
        router.close()


def need(family: Family, name: str) -> int:
    return predict_memory(family.path(name), 2048).total_bytes


def scarce(family: Family, share: float = 0.7) -> int:
    """Bytes with which so much of the large tier's file would fit, and what it takes besides."""
    wanted = need(family, "large") - (1 - share) * family.tier("large").bytes
    assert need(family, "small") < wanted
    return int(wanted / (1 - MARGIN_SHARE)) + 1


def settle(router: Router) -> None:
    """Waits for what is being made."""
    assert router._variants is not None
    thread = router._variants._work.thread
    if thread is not None:
        thread.join()


def under_pressure(router: Router, calls: int = PATIENCE) -> list[str]:
    """The tiers of so many calls; what is being made by then is waited for."""
    tiers = [router.decide(CALL).tier for _ in range(calls)]
    settle(router)
    return tiers


def records(family: Family) -> list[Path]:
    return sorted((family.folder / FOLDER).glob("*.json"))


def read(path: Path) -> Variant:
    return Variant.model_validate_json(path.read_text())


def test_a_variant_is_made_used_and_found_again(
    opened: Open, family: Family, machine: Machine
) -> None:
    manifest = (family.folder / "family.json").read_bytes()
    router = opened(family)
    assert router.decide(CALL).tier == "large"
    machine.left = scarce(family)
    assert under_pressure(router, PATIENCE - 1) == ["small"] * (PATIENCE - 1)
    assert not records(family), "not before memory has asked for it often enough"
    assert under_pressure(router, 1) == ["small"]
    (path,) = records(family)
    variant = read(path)
    assert sorted(one.name for one in path.parent.iterdir()) == [
        f"{variant.key}.gguf",
        f"{variant.key}.json",
    ]
    assert variant.recipe.quantization == "Q8_0" and not variant.recipe.pruned_layers
    assert variant.parent_sha256 == family.tier("large").sha256
    assert 0 < variant.divergence.kl_mean < 0.1
    found = answer(router, CALL)
    decision = found.final.decision
    assert decision.tier == variant.tier.name == f"large-q8_0-{variant.key[:4]}"
    assert found.reply.text in ("yes", "no")
    large = next(one for one in decision.forecasts if one.tier == "large")
    keeps = kept(variant.divergence.kl_mean, decision.difficulty)
    assert decision.forecast.success == pytest.approx(large.success * keeps)
    assert decision.forecast.memory_bytes < machine.left < large.memory_bytes
    assert [tier.name for tier in router.tiers] == ["small", variant.tier.name, "large"]
    assert [one.name for one in router.better_than("small")] == [variant.tier.name, "large"]
    # Memory comes back, and with it the tier itself.
    machine.left = 4 * 2**30
    assert router.decide(CALL).tier != "small"
    assert answer(router, CALL, pin="large").final.decision.tier == "large"
    assert (family.folder / "family.json").read_bytes() == manifest
    router.close()
    # The next start finds it, and those who do not want variants do not see it.
    again = opened(Family.load(family.folder))
    machine.left = scarce(family)
    assert again.decide(CALL).tier == variant.tier.name
    plain = opened(Family.load(family.folder), deriver=None)
    assert [tier.name for tier in plain.tiers] == ["small", "large"]
    other = opened(Family.load(family.folder), tiers=["small"])
    assert [tier.name for tier in other.tiers] == ["small"]


def test_nothing_fits_so_that_one_call_is_enough(
    opened: Open, family: Family, machine: Machine
) -> None:
    router = opened(family, tiers=["large"])
    machine.left = scarce(family)
    with pytest.raises(NoFeasibleTierError, match="large needs"):
        router.decide(CALL)
    settle(router)
    assert router.decide(CALL).tier.startswith("large-q8_0-")
    machine.left = scarce(family, 0.4)  # and still less, for which a smaller one is made
    with pytest.raises(NoFeasibleTierError):
        router.decide(CALL)
    settle(router)
    assert router.decide(CALL).tier.startswith("large-q5_k_m-")
    assert len(records(family)) == 2


def test_a_damaged_variant_is_refused_and_made_anew(
    opened: Open, family: Family, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.left = scarce(family)
    router = opened(family)
    under_pressure(router)
    router.close()
    (path,) = records(family)
    variant, file = read(path), path.with_suffix(".gguf")
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with caplog.at_level(logging.WARNING, "tierwise"):
        again = opened(Family.load(family.folder))
    assert "its file is damaged: the hash is not that of its record" in caplog.text
    assert [tier.name for tier in again.tiers] == ["small", "large"]
    assert not records(family) and not file.exists()
    assert under_pressure(again) == ["small"] * PATIENCE
    assert file.read_bytes() == sound and read(path) == variant
    assert again.decide(CALL).tier == variant.tier.name


def test_one_that_is_no_better_than_what_fits_is_dropped_for_good(
    opened: Open, family: Family, machine: Machine
) -> None:
    """By its calibrated chance, the tier is hardly better than the small one."""
    calibration = made_calibration()
    calibration.usual[:] = [0.7999, 0.8]
    machine.left = scarce(family)
    router = opened(family, calibration=calibration)
    under_pressure(router)
    (path,) = records(family)
    dropped = read(path)
    assert dropped.dropped.startswith("with a chance of 8") and "than small with 80%" in (
        dropped.dropped
    )
    assert not path.with_suffix(".gguf").exists()
    assert under_pressure(router, 2 * PATIENCE) == ["small"] * 2 * PATIENCE
    router.close()
    stamp = path.stat().st_mtime_ns
    again = opened(Family.load(family.folder), calibration=calibration)
    assert under_pressure(again) == ["small"] * PATIENCE
    assert records(family) == [path] and path.stat().st_mtime_ns == stamp
    assert not list(path.parent.glob("*.gguf")), "and it was not made again"


def test_a_tier_that_calibration_finds_no_better_is_not_worth_a_try(
    opened: Open, family: Family, machine: Machine
) -> None:
    calibration = made_calibration()
    calibration.usual[:] = [0.8, 0.8]
    machine.left = scarce(family)
    router = opened(family, calibration=calibration)
    under_pressure(router, 2 * PATIENCE)
    assert router._variants is not None and router._variants._work.thread is None


class Asked:
    """A deriver that takes note of what it is asked for, and waits until it may go on."""

    def __init__(self, result: Variant | Exception | None = None) -> None:
        self.wanted: list[Wanted] = []
        self.go = threading.Event()
        self.stopped = threading.Event()
        self._result = result

    def __call__(self, wanted: Wanted, stop: threading.Event) -> Variant | None:
        self.wanted.append(wanted)
        while not self.go.wait(0.01):
            if stop.is_set():
                self.stopped.set()
                return None
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def test_calls_do_not_wait_and_one_is_made_at_a_time(
    opened: Open, family: Family, machine: Machine
) -> None:
    asked = Asked()
    router = opened(family, asked)
    machine.left = scarce(family)
    assert [router.decide(CALL).tier for _ in range(4 * PATIENCE)] == ["small"] * 4 * PATIENCE
    wait_until(lambda: len(asked.wanted) == 1)
    (wanted,) = asked.wanted
    assert wanted.parent == family.tier("large")
    assert wanted.context_tokens == 2048, "as the pool rounds it up"
    assert need(family, "small") < wanted.most_bytes < need(family, "large")
    router.close()
    assert asked.stopped.is_set() and len(asked.wanted) == 1


def test_pressure_that_passes_asks_for_nothing(
    opened: Open, family: Family, machine: Machine
) -> None:
    asked = Asked()
    router = opened(family, asked)
    for number in range(4 * PATIENCE):
        machine.left = 4 * 2**30 if number % PATIENCE == 0 else scarce(family)
        router.decide(CALL)
    machine.left = scarce(family)
    for _ in range(2 * PATIENCE):  # nor do calls that may not use one
        router.decide(CALL, pin="small")
        router.decide(CALL, without=["large"])
    assert asked.wanted == []


@pytest.mark.parametrize("failure", [DiskFullError("the disk is full"), OSError("no such device")])
def test_a_failure_is_logged_and_not_tried_at_once_again(
    failure: Exception,
    opened: Open,
    family: Family,
    machine: Machine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = Asked(failure)
    asked.go.set()
    router = opened(family, asked)
    machine.left = scarce(family)
    with caplog.at_level(logging.WARNING, "tierwise"):
        assert under_pressure(router) == ["small"] * PATIENCE
    assert f"no cheaper variant of large was made: {failure}" in caplog.text
    assert under_pressure(router, 2 * PATIENCE) == ["small"] * 2 * PATIENCE
    assert len(asked.wanted) == 1


def test_nothing_found_is_looked_for_again_with_more_memory_only(
    opened: Open, family: Family, machine: Machine
) -> None:
    asked = Asked(None)
    asked.go.set()
    router = opened(family, asked)
    for share, times in ((0.5, 1), (0.5, 1), (0.3, 1), (0.52, 1), (0.9, 2)):
        machine.left = scarce(family, share)
        under_pressure(router, 2 * PATIENCE)
        assert len(asked.wanted) == times, share


def test_a_router_that_is_let_go_gives_up(family: Family, machine: Machine) -> None:
    asked = Asked()
    with Pool(family, probe=machine, threads=1, kv_type="f16") as pool:
        machine.pool = pool
        router = Router(family, pool, Budget(quality=1.0), probe=machine, deriver=asked)
        machine.left = scarce(family)
        for _ in range(PATIENCE):
            router.decide(CALL)
        wait_until(lambda: len(asked.wanted) == 1)
        del router
        assert asked.stopped.wait(60)


def test_what_is_made_is_stopped_in_the_middle(family: Family) -> None:
    """The process is killed, and nothing is left behind that looks like a variant."""
    stop, found = threading.Event(), []
    wanted = Wanted(
        folder=str(family.folder),
        parent=family.tier("large"),
        context_tokens=2048,
        most_bytes=scarce(family),
        threads=1,
    )
    thread = threading.Thread(target=lambda: found.append(derive(wanted, stop)))
    thread.start()
    wait_until(lambda: any((family.folder / FOLDER).glob(".work-*")))
    stop.set()
    thread.join()
    assert found == [None]
    assert not list((family.folder / FOLDER).iterdir())


def test_what_is_made_does_not_outlive_a_process_that_is_killed(family: Family) -> None:
    wanted = Wanted(
        folder=str(family.folder),
        parent=family.tier("large"),
        context_tokens=2048,
        most_bytes=scarce(family),
        threads=1,
    )
    code = (
        "import sys, threading\n"
        "from tierwise.compression.derive import derive\n"
        "from tierwise.runtime.variants import Wanted\n"
        "derive(Wanted.model_validate_json(sys.argv[1]), threading.Event())"
    )
    folder = family.folder / FOLDER
    with subprocess.Popen([sys.executable, "-c", code, wanted.model_dump_json()]) as server:
        wait_until(lambda: any(folder.glob(".work-*")))
        (work,) = folder.glob(".work-*")
        maker = psutil.Process(int(work.name.removeprefix(".work-")))
        maker.suspend()  # else it might be done before
        server.kill()
    time.sleep(1.5)  # it looks every second, and so it does as soon as it goes on
    maker.resume()
    gone, _ = psutil.wait_procs([maker], timeout=120)
    assert gone == [maker]
    assert list(VariantStore(family).usable()) == []


def test_promises_are_not_given_with_variants(
    opened: Open, family: Family, machine: Machine
) -> None:
    machine.left = scarce(family)
    router = opened(family)
    under_pressure(router)
    router.calibration = made_calibration()
    promised = router.decide(CALL, budget=Budget(quality=0.5, guarantee=0.9))
    assert promised.tier == "small"
    assert promised.forecasts[1].verdict == "no promise was tested on it"


def test_derive_tells_what_went_wrong(family: Family) -> None:
    large = family.tier("large")
    gone = large.model_copy(update={"file": "gone.gguf"})
    wanted = Wanted(
        folder=str(family.folder), parent=gone, context_tokens=2048, most_bytes=10**9, threads=1
    )
    with pytest.raises(Exception, match="is missing"):
        derive(wanted, threading.Event())
    (family.folder / FOLDER).write_text("a file where the folder should be")
    with pytest.raises(BuildError, match=r"'large' ended with exit code 1.*FileExistsError"):
        derive(
            wanted.model_copy(update={"parent": large, "most_bytes": scarce(family)}),
            threading.Event(),
        )


def test_records_are_believed_no_more_than_manifests(family: Family, tmp_path: Path) -> None:
    store = VariantStore(family)
    store.folder.mkdir()
    large = family.tier("large")
    base = Variant.model_validate(
        {
            "parent_sha256": large.sha256,
            "recipe": {"quantization": "Q8_0"},
            "tier": {**large.model_dump(), "name": "other", "file": "unset.gguf"},
            "divergence": make_quality(0.1).divergence,
        }
    )
    key = base.key
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(family.path("large").read_bytes())

    def saved(file: str, **changes: object) -> Variant:
        tier = base.tier.model_copy(update={"file": file})
        variant = base.model_copy(update={"tier": tier, **changes})
        store.save(variant)
        return variant

    good = f"{FOLDER}/{key}.gguf"
    saved("large.gguf")  # a file of the family, but not that of the key
    assert store.find(key) is None
    saved(good)
    assert store.find(key) is None  # there is no file
    saved(good)
    store.file(key).symlink_to(secret)
    assert store.find(key) is None
    assert sha256_of(secret) == large.sha256, "and what it led to is untouched"
    store.file(key).unlink(missing_ok=True)
    store.file(key).write_bytes(secret.read_bytes())
    variant = saved(good)
    assert store.find(key) == variant and list(store.usable()) == [variant]
    store._record("0" * 16).write_text(variant.model_dump_json())
    assert store.find("0" * 16) is None, "a record under another name"
    away = variant.model_dump_json().replace(variant.tier.file, "../x.gguf")
    store._record(key).write_text(away)
    assert store.find(key) is None, "a file elsewhere"
    store.file(key).write_bytes(secret.read_bytes())
    store._record(key).write_text(variant.model_dump_json().replace('"recipe"', '"other"'))
    assert store.find(key) is None, "a record of another kind"
    stale = saved(good, parent_sha256="1" * 64)
    assert list(store.usable()) == [], "of a tier that the family has no more"
    assert stale.key != key


def test_a_folder_that_is_a_link_is_left_alone(family: Family, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / f"{'0' * 16}.json").write_text("{}")
    (family.folder / FOLDER).symlink_to(outside)
    assert list(VariantStore(family).usable()) == []
    assert len(list(outside.iterdir())) == 1
