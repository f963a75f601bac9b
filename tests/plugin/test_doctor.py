"""The doctor's findings about this machine, and about families that are whole, damaged, too big."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from tiny_models import write_tiny_gguf

from tierwise.compression.build import build_family
from tierwise.compression.recipe import BuildConfig, TierRecipe
from tierwise.plugin import doctor
from tierwise.plugin.doctor import Finding, examine

SMALL = BuildConfig(
    candidates=(TierRecipe(quantization="Q8_0"),),
    calibration_tokens=256,
    held_out_tokens=64,
    suite_tasks=4,
    imatrix=False,
    threads=1,
)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    build_family(write_tiny_gguf(folder / "tiny.gguf", context=4096), folder / "family", SMALL)
    return folder / "family"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of the network set their own address."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def find(findings: tuple[Finding, ...], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_tells_versions_cores_memory_and_disks() -> None:
    findings = examine()
    assert find(findings, "llama-cpp-python").detail == version("llama-cpp-python")
    assert find(findings, "llama.cpp").detail.startswith("built for ")
    assert "usable of" in find(findings, "cores").detail
    assert " available of " in find(findings, "memory").detail
    assert find(findings, "disk here").detail.endswith(str(Path.cwd()))
    assert len({finding.name for finding in findings}) == len(findings)


def test_whatever_is_not_ok_has_a_cure_and_what_is_ok_has_none() -> None:
    for finding in examine():
        assert bool(finding.cure) == (finding.status != "ok"), finding


def test_a_missing_extra_is_a_warning_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"compress": ("json", "no_such_module")})
    finding = find(examine(), "extra compress")
    assert finding.status == "warn"
    assert "no_such_module" in finding.detail
    assert "json" not in finding.detail
    assert finding.cure == "pip install 'tierwise[compress]'"


def test_the_extras_of_users_are_those_of_the_package() -> None:
    brought: dict[str, set[str]] = {}
    for text in requires("tierwise") or ():
        if found := re.match(r"([\w-]+).*extra == ['\"](\w+)['\"]", text):
            brought.setdefault(found[2], set()).add(found[1].replace("-", "_"))
    known = {extra: set(modules) for extra, modules in doctor.EXTRAS.items()}
    assert known == {extra: brought[extra] for extra in brought if extra not in ("bench", "dev")}


def test_a_missing_package_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    finding = find(examine(), "no-such-package")
    assert (finding.status, finding.detail) == ("fail", "not installed")


def test_a_llama_cpp_that_cannot_be_loaded_fails_and_the_rest_is_still_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # what `import` does with a broken one
    findings = examine(tmp_path)
    assert find(findings, "llama.cpp").status == "fail"
    assert "pip install" in find(findings, "llama.cpp").cure
    assert find(findings, "home folder").status == "ok"
    assert not [finding for finding in findings if finding.name in ("memory", "family")]


def test_a_home_that_cannot_be_written_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TIERWISE_HOME", str(tmp_path / "file" / "home"))
    finding = find(examine(), "home folder")
    assert finding.status == "warn"
    assert "TIERWISE_HOME" in finding.cure


def test_the_home_is_left_without_traces() -> None:
    examine()
    assert not list(Path(os.environ["TIERWISE_HOME"]).glob(".doctor-*"))


def test_offline_is_said() -> None:
    finding = find(examine(), "network")
    assert finding.status == "warn"
    assert "HF_HUB_OFFLINE" in finding.detail


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "NETWORK_WAIT_S", 60.0)
    return monkeypatch


def test_a_hub_that_answers_is_reached(online: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert find(examine(), "network") == Finding("network", "ok", "127.0.0.1 can be reached")


def test_a_proxy_is_what_must_be_reached(online: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        online.setenv("HTTPS_PROXY", f"http://localhost:{server.getsockname()[1]}")
        assert find(examine(), "network").detail == "localhost can be reached"


def test_a_hub_that_does_not_answer_is_a_warning(online: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody else may have the port, and nobody listens
        online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        finding = find(examine(), "network")
    assert finding.status == "warn"
    assert "127.0.0.1 cannot be reached" in finding.detail


@pytest.mark.parametrize("address", ["nonsense", "http://host:port"])
def test_a_wrong_hub_address_is_named(online: pytest.MonkeyPatch, address: str) -> None:
    online.setenv("HF_ENDPOINT", address)
    finding = find(examine(), "network")
    assert finding.status == "warn"
    assert address in finding.detail


def test_a_family_that_is_whole_fits(family: Path) -> None:
    findings = examine(family)
    assert find(findings, "family").status == "ok"
    tier = find(findings, "tier q8_0")
    assert tier.status == "ok"
    assert "fits: predicted" in tier.detail
    assert "MB with 2,048 tokens" in tier.detail
    assert "speed estimated" in tier.detail  # this test's home has no profiles


def test_a_folder_without_a_family_fails(tmp_path: Path) -> None:
    finding = find(examine(tmp_path), "family")
    assert finding.status == "fail"
    assert "tierwise build" in finding.detail


def test_a_damaged_tier_fails(family: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(family, tmp_path / "copy")
    with (copy / "q8_0.gguf").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"damaged!")
    finding = find(examine(copy), "family")
    assert finding.status == "fail"
    assert "sha256" in finding.detail
