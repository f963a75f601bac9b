"""GGUF files made elsewhere join a family, or leave it as it was."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import gguf
import pytest
from build_tools import FileLimit, Recorder
from tiny_models import CHATML, CHATML_TOOLS, write_scripted_gguf, write_tiny_gguf

from tierwise.compression.adopt import adopt_tier
from tierwise.compression.base_record import tokenizer_hash
from tierwise.compression.build import build_family
from tierwise.compression.quantize import quantize
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.reporting import Progress
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.errors import (
    ConfigError,
    DamagedModelError,
    DiskFullError,
    FamilyNotFoundError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from tierwise.runtime.family import MANIFEST, Family
from tierwise.runtime.files import sha256_of
from tierwise.runtime.llama import Model
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import (
    Profile,
    estimated_profile,
    load_profile,
    save_profile,
)
from tierwise.runtime.remote_tier import RemoteTier

Snapshot = dict[str, bytes]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf", layers=6, context=512)


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family of q8_0 and f16, its suite of 5 tasks with seed 3; copy it before you write."""
    config = BuildConfig.make(
        candidates=[{"quantization": "Q8_0"}, {"quantization": "F16"}],
        keep_all=True,
        imatrix=False,
        held_out_tokens=64,
        suite_tasks=5,
        seed=3,
        threads=1,
    )
    return build_family(base, tmp_path_factory.mktemp("built"), config)


@pytest.fixture
def family(built: Family, tmp_path: Path) -> Family:
    folder = tmp_path / "family"
    folder.mkdir()
    for name in (MANIFEST, *(tier.file for tier in built.tiers)):
        (folder / name).write_bytes((built.folder / name).read_bytes())
    return Family.load(folder)


@pytest.fixture
def other(base: Path, tmp_path: Path) -> Path:
    """The same model in 5 bits, in a folder of its own."""
    path = tmp_path / "elsewhere" / "Tiny model (5 bits).Q5_0.gguf"
    quantize(base, path, "Q5_0", threads=1)
    return path


def snapshot(folder: Path) -> Snapshot:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def edited(source: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    target.write_bytes(change(source.read_bytes()))
    return target


def test_a_file_becomes_a_tier(family: Family, other: Path) -> None:
    reporter = Recorder()
    adopted = adopt_tier(family.folder, other, reporter=reporter)
    assert adopted == Family.load(family.folder)
    assert adopted.base == family.base
    name = "Tiny-model-5-bits-.Q5_0"
    tier = adopted.tier(name)
    assert tier.file == f"{name}.gguf"
    assert (tier.sha256, tier.bytes) == (sha256_of(other), other.stat().st_size)
    assert (tier.layers, tier.context_tokens) == (6, 512)
    lineage = tier.lineage
    assert (lineage.origin, lineage.quantization) == ("adopted", "Q5_0")
    kinds = [t.tensor_type.name.lower() for t in gguf.GGUFReader(other).tensors]
    assert lineage.tensor_types == {kind: kinds.count(kind) for kind in set(kinds)}
    assert reporter.titles == [
        f"Reading {other.name}",
        f"Speed of {name}",
        f"Tool tasks with {name}",
    ]
    assert other.is_file() and reporter.notes == []
    card = (family.folder / f"{name}.md").read_text(encoding="utf-8")
    assert "Q5_0" in card and family.base.name in card


def test_it_is_measured_like_the_others(family: Family, other: Path) -> None:
    tier = adopt_tier(family.folder, other, name="five").tier("five")
    tools = tier.quality.tools
    assert tools is not None and (tools.seed, tools.overall.n) == (3, 5)
    assert tier.quality.divergence is None
    profile = load_profile(tier.sha256)
    assert profile is not None and not profile.estimated


def test_measuring_can_be_left_out(family: Family, other: Path) -> None:
    reporter = Recorder()
    tier = adopt_tier(family.folder, other, name="five", measure=False, reporter=reporter)
    assert tier.tier("five").quality.tools is None
    assert load_profile(tier.tier("five").sha256) is None
    assert reporter.titles == [f"Reading {other.name}"]


def test_without_other_results_the_suite_is_the_usual_one(family: Family, other: Path) -> None:
    manifest = json.loads((family.folder / MANIFEST).read_text())
    for tier in manifest["tiers"]:
        tier["quality"]["tools"] = None
    (family.folder / MANIFEST).write_text(json.dumps(manifest))
    tools = adopt_tier(family.folder, other, name="five").tier("five").quality.tools
    assert tools is not None and (tools.seed, tools.overall.n) == (0, 48)


def test_all_tiers_answer_from_one_prompt(family: Family, other: Path) -> None:
    adopted = adopt_tier(family.folder, other, name="five", measure=False)
    call = Call((Message("user", "hello Paris"),), max_tokens=4)
    with Pool(adopted, threads=1) as pool:
        for tier in adopted.tiers:
            with pool.acquire(tier, context_tokens=100) as lease:
                assert lease.tier.prompt(call) == pool.prompt(call)


# --- Its place ------------------------------------------------------------------------------------


def with_speed(family: Family, sha256: str, decode: float) -> Profile:
    """A profile as if measured on this machine."""
    made = estimated_profile(family.tiers[0])
    return made.model_copy(
        update={
            "tier_sha256": sha256,
            "threads": 1,
            "prefill_tokens_per_s": 1e6,
            "decode_tokens_per_s": decode,
            "runs": 1,
            "estimated": False,
        }
    )


@pytest.mark.parametrize(("decode", "place"), [(30.0, 0), (15.0, 1), (5.0, 2)])
def test_faster_tiers_come_first(family: Family, other: Path, decode: float, place: int) -> None:
    for tier, speed in zip(family.tiers, (20.0, 10.0), strict=True):
        save_profile(with_speed(family, tier.sha256, speed))
    save_profile(with_speed(family, sha256_of(other), decode))
    adopted = adopt_tier(family.folder, other, name="five", measure=False)
    names = [tier.name for tier in family.tiers]
    names.insert(place, "five")
    assert [tier.name for tier in adopted.tiers] == names


def test_where_speeds_are_unknown_smaller_tiers_come_first(family: Family, other: Path) -> None:
    manifest = json.loads((family.folder / MANIFEST).read_text())
    manifest["tiers"].sort(key=lambda tier: tier["bytes"])
    (family.folder / MANIFEST).write_text(json.dumps(manifest))
    save_profile(with_speed(family, sha256_of(other), 1e-6))  # of no use without the others'
    adopted = adopt_tier(family.folder, other, name="five", measure=False)
    assert [tier.name for tier in adopted.tiers] == ["five", "q8_0", "f16"]


# --- The file -------------------------------------------------------------------------------------


def test_a_file_in_the_folder_is_used_in_place(family: Family, other: Path) -> None:
    inside = family.folder / "more" / "five.gguf"
    inside.parent.mkdir()
    other.replace(inside)
    before = snapshot(family.folder)
    tier = adopt_tier(family.folder / MANIFEST, inside, measure=False).tier("five")
    assert tier.file == "more/five.gguf"
    cards = {f"{name}.md" for name in ("five", "f16", "q8_0")}
    assert snapshot(family.folder).keys() == before.keys() | cards


def test_a_file_behind_a_symbolic_link_is_copied_whole(family: Family, other: Path) -> None:
    link = family.folder.parent / "links" / "five.gguf"
    link.parent.mkdir()
    link.symlink_to(Path("..") / other.parent.name / other.name)
    adopted = adopt_tier(family.folder, link, measure=False)
    assert not adopted.path("five").is_symlink()
    Family.load(family.folder)


def test_a_file_that_a_killed_adoption_left_is_taken(family: Family, other: Path) -> None:
    (family.folder / "five.gguf").write_bytes(other.read_bytes())
    adopted = adopt_tier(family.folder, other, name="five", measure=False)
    assert adopted.tier("five").sha256 == sha256_of(other)


def test_names_come_from_files(family: Family, other: Path) -> None:
    for layer, stem in enumerate(("!!!", "._x", "Ünï", "a" * 100)):
        path = other.with_name(f"{stem}.gguf")
        quantize(other, path, "Q8_0", pruned_layers=(layer,), threads=1)
        family = adopt_tier(family.folder, path, measure=False)
    assert {"adopted", "x", "n", "a" * 64} <= {tier.name for tier in family.tiers}


def test_a_tier_that_was_dropped_is_dropped_no_more(family: Family, other: Path) -> None:
    family.model_copy(update={"dropped": {"five": "too slow", "six": "too big"}}).save(
        family.folder
    )
    adopted = adopt_tier(family.folder, other, name="five", measure=False)
    assert adopted.dropped == {"six": "too big"}


# --- What is refused ------------------------------------------------------------------------------


def refused(
    family: Family, file: Path, error: type[Exception], told: str, name: str | None = None
) -> None:
    """It fails, and the family and its folder are as they were."""
    before = snapshot(family.folder)
    with pytest.raises(error, match=told):
        adopt_tier(family.folder, file, name=name)
    assert snapshot(family.folder) == before
    assert Family.load(family.folder) == family


def test_other_vocabularies_are_refused(family: Family, base: Path, tmp_path: Path) -> None:
    larger = write_scripted_gguf(tmp_path / "larger.gguf", "Hello!")
    refused(family, larger, UnsupportedModelError, "a vocabulary of 260 tokens, the family's base")
    # As many tokens, but one of them another.
    other = edited(base, tmp_path / "other.gguf", lambda data: data.replace(b"hello", b"jello"))
    with Model(other, vocab_only=True) as model:
        assert model.vocab_size == family.base.vocab_size
        assert tokenizer_hash(model) != family.base.tokenizer_sha256
    refused(family, other, UnsupportedModelError, "another tokenizer than the family's base 'tiny'")


def test_templates_that_write_tools_otherwise_are_refused(family: Family, tmp_path: Path) -> None:
    plain = write_tiny_gguf(tmp_path / "plain.gguf", context=512, chat_template=CHATML)
    refused(family, plain, UnsupportedModelError, "writes tool calls in another form")
    mute = write_tiny_gguf(tmp_path / "mute.gguf", context=512, chat_template=None)
    refused(family, mute, UnsupportedModelError, "no chat template")


def test_a_template_that_is_only_worded_otherwise_is_noted(family: Family, tmp_path: Path) -> None:
    template = CHATML_TOOLS.replace("# Tools", "# Functions")
    path = write_tiny_gguf(tmp_path / "five.gguf", context=512, chat_template=template)
    reporter = Recorder()
    adopt_tier(family.folder, path, measure=False, reporter=reporter)
    assert len(reporter.notes) == 1 and "a chat template of its own" in reporter.notes[0]


def test_files_that_are_no_models_are_refused(family: Family, other: Path, tmp_path: Path) -> None:
    refused(family, tmp_path / "missing.gguf", ModelNotFoundError, r"missing\.gguf")
    refused(family, tmp_path, ModelNotFoundError, "no GGUF file")
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    refused(family, text, DamagedModelError, "no GGUF file")
    half = edited(other, tmp_path / "half.gguf", lambda data: data[: len(data) // 2])
    refused(family, half, DamagedModelError, r"half\.gguf")
    unknown = write_tiny_gguf(tmp_path / "unknown.gguf", architecture="quux")
    refused(family, unknown, UnsupportedModelError, "quux")


def test_duplicates_are_refused(family: Family, base: Path, other: Path) -> None:
    refused(family, other, ConfigError, "has a tier 'q8_0' already", name="q8_0")
    refused(family, family.path("q8_0"), ConfigError, "has a tier 'q8_0' already")
    refused(family, family.path("q8_0"), ConfigError, "is the family's tier 'q8_0' already", "x")


def test_names_of_remotes_are_taken_too(family: Family, other: Path) -> None:
    remote = RemoteTier(name="far", url="http://localhost:1/v1", model="m")
    family = family.model_copy(update={"remotes": (remote,)})
    family.save(family.folder)
    refused(Family.load(family.folder), other, ConfigError, "has a tier 'far' already", name="far")


def test_what_changes_while_it_is_measured_stays(family: Family, other: Path) -> None:
    remote = RemoteTier(name="far", url="http://localhost:1/v1", model="m")

    class Connecting(Recorder):
        def stage(self, title: str) -> AbstractContextManager[Progress]:
            if title.startswith("Tool tasks"):
                family.model_copy(update={"remotes": (remote,)}).save(family.folder)
            return super().stage(title)

    adopted = adopt_tier(family.folder, other, name="five", reporter=Connecting())
    assert adopted.remotes == (remote,)
    assert adopted.tier("five").quality.tools is not None
    assert Family.load(family.folder) == adopted

    class Clashing(Recorder):
        def stage(self, title: str) -> AbstractContextManager[Progress]:
            if title.startswith("Tool tasks"):
                named = remote.model_copy(update={"name": "six"})
                adopted.model_copy(update={"remotes": (named,)}).save(family.folder)
            return super().stage(title)

    six = other.with_name("six.gguf")
    quantize(other, six, "Q8_0", pruned_layers=(1,), threads=1)
    with pytest.raises(ConfigError, match="has a tier 'six' already"):
        adopt_tier(family.folder, six, reporter=Clashing())
    assert not (family.folder / "six.gguf").exists()


def test_names_that_are_no_names_are_refused(family: Family, other: Path) -> None:
    for name in ("", "a b", "../x", ".x", "x/y", "a" * 65, "five\n"):
        refused(family, other, ConfigError, "a tier cannot be called", name=name)


def test_another_file_in_its_place_is_not_touched(family: Family, other: Path) -> None:
    (family.folder / "five.gguf").write_bytes(b"something of the user's")
    refused(family, other, ConfigError, r"five\.gguf' is there already", name="five")
    (family.folder / "five.gguf").unlink()
    (family.folder / "five.gguf").symlink_to(other)
    refused(family, other, ConfigError, r"five\.gguf' is there already", name="five")


def test_there_must_be_a_family(tmp_path: Path, other: Path) -> None:
    with pytest.raises(FamilyNotFoundError):
        adopt_tier(tmp_path, other)


def test_a_full_disk_leaves_the_family_as_it_was(
    family: Family, other: Path, file_limit: FileLimit
) -> None:
    before = snapshot(family.folder)
    with file_limit(1000), pytest.raises(DiskFullError, match=r"family\.json"):
        adopt_tier(family.folder, other, name="five", measure=False)
    assert snapshot(family.folder) == before
    adopt_tier(family.folder, other, name="five", measure=False)


def test_a_copy_that_does_not_fit_leaves_nothing(
    family: Family, other: Path, file_limit: FileLimit
) -> None:
    """From another disk a file is copied, not linked."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == family.folder.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        elsewhere = Path(folder) / "five.gguf"
        elsewhere.write_bytes(other.read_bytes())
        before = snapshot(family.folder)
        with file_limit(100_000), pytest.raises(DiskFullError, match=r"five\.gguf"):
            adopt_tier(family.folder, elsewhere, measure=False)
        assert snapshot(family.folder) == before
        adopt_tier(family.folder, elsewhere, measure=False)


def test_ctrl_c_while_measuring_leaves_the_family_as_it_was(family: Family, other: Path) -> None:
    before = snapshot(family.folder)

    class Interrupted(Recorder):
        def stage(self, title: str):  # type: ignore[no-untyped-def]
            if title.startswith("Tool tasks"):
                raise KeyboardInterrupt
            return super().stage(title)

    with pytest.raises(KeyboardInterrupt):
        adopt_tier(family.folder, other, name="five", reporter=Interrupted())
    assert snapshot(family.folder) == before


def test_an_adopted_tier_outlives_a_rebuild(family: Family, other: Path, base: Path) -> None:
    adopt_tier(family.folder, other, name="five", measure=False)
    config = BuildConfig(
        tiers=1, calibration_tokens=256, held_out_tokens=64, suite_tasks=4, threads=1
    )
    rebuilt = build_family(base, family.folder, config)
    assert "five" in [tier.name for tier in rebuilt.tiers]
    assert Family.load(family.folder).tier("five").lineage.origin == "adopted"
