"""A family on disk: what is written is read back, and nothing unsafe or broken is accepted."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tierwise.runtime.errors import (
    ConfigError,
    DamagedTierError,
    FamilyError,
    FamilyIncompleteError,
    FamilyNotFoundError,
    FamilySchemaError,
    UnsafePathError,
)
from tierwise.runtime.family import (
    MANIFEST,
    SCHEMA_VERSION,
    Base,
    Divergence,
    Estimate,
    Family,
    Quality,
    SuiteResult,
    Tier,
)
from tierwise.runtime.lineage import Lineage

CONTENT = {"q4": b"four" * 100, "q8": b"eight" * 200}


def tier(name: str, file: str | None = None) -> Tier:
    content = CONTENT.get(name, b"other")
    half = Estimate(value=0.5, n=8, low=0.2, high=0.8)
    return Tier(
        name=name,
        file=file or f"{name}.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        parameters=1000,
        layers=4,
        context_tokens=512,
        kv_bytes_per_token=256,
        lineage=Lineage(origin="built", quantization="Q4_K_M", pruned_layers=(2,)),
        quality=Quality(
            divergence=Divergence(
                tokens=100,
                kl_mean=0.01,
                kl_p999=float("inf"),
                top1_agreement=half,
                perplexity=12.5,
                base_perplexity=12.0,
            ),
            tools=SuiteResult(suite="s", seed=1, overall=half, by_grade={"easy": half}, by_kind={}),
        ),
    )


def family(*tiers: Tier) -> Family:
    return Family(
        created="2026-01-02T03:04:05Z",
        tierwise="0.1.0",
        base=Base(
            name="tiny",
            source="/models/tiny.gguf",
            sha256="0" * 64,
            architecture="llama",
            parameters=1000,
            layers=4,
            context_tokens=512,
            vocab_size=300,
            licence="apache-2.0",
            tokenizer_sha256="1" * 64,
        ),
        tiers=tiers or (tier("q4"), tier("q8")),
        dropped={"q2": "not smaller than q4 at lower quality"},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a family with two tiers."""
    folder = tmp_path / "family"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / f"{name}.gguf").write_bytes(content)
    family().save(folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Changes fields of the manifest; ``tier_`` ones are those of its first tier."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for key, value in changes.items():
        if key.startswith("tier_"):
            manifest["tiers"][0][key.removeprefix("tier_")] = value
        else:
            manifest[key] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))


# --- Round trip -----------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(saved: Path) -> None:
    loaded = Family.load(saved)
    assert loaded.model_dump() == family().model_dump()
    assert loaded.folder == saved
    assert loaded == Family.load(str(saved)) == Family.load(saved / MANIFEST)
    assert [one.name for one in loaded.tiers] == ["q4", "q8"]
    assert loaded.path("q8") == loaded.path(loaded.tiers[1]) == saved / "q8.gguf"


def test_the_manifest_is_readable_and_alone(saved: Path) -> None:
    text = (saved / MANIFEST).read_text()
    assert text.endswith("}\n") and len(text.splitlines()) > 20
    assert json.loads(text)["schema_version"] == SCHEMA_VERSION
    assert {path.name for path in saved.iterdir()} == {MANIFEST, "q4.gguf", "q8.gguf"}


def test_tiers_may_lie_in_subfolders(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "q4.gguf").write_bytes(CONTENT["q4"])
    family(tier("q4", "a/b/q4.gguf")).save(tmp_path)
    assert Family.load(tmp_path).path("q4") == tmp_path / "a" / "b" / "q4.gguf"


def test_a_moved_family_is_still_whole(saved: Path, tmp_path: Path) -> None:
    moved = saved.rename(tmp_path / "elsewhere")
    assert Family.load(moved).path("q4").is_file()


def test_an_unknown_tier_is_an_error_that_lists_the_others(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tier 'q5'.*q4, q8"):
        Family.load(saved).tier("q5")


def test_what_is_stored_cannot_be_changed(saved: Path) -> None:
    loaded = Family.load(saved)
    with pytest.raises(ValueError, match="frozen"):
        loaded.tiers[0].name = "q5"  # type: ignore[misc]


# --- Saving ---------------------------------------------------------------------------------------


def test_no_manifest_is_written_before_all_files_are_there(tmp_path: Path) -> None:
    (tmp_path / "q4.gguf").write_bytes(CONTENT["q4"])
    with pytest.raises(FamilyIncompleteError, match=r"q8\.gguf"):
        family().save(tmp_path)
    assert not (tmp_path / MANIFEST).exists()


def test_a_manifest_that_cannot_be_saved_leaves_the_old_one(saved: Path) -> None:
    before = (saved / MANIFEST).read_bytes()
    (saved / "q4.gguf").write_bytes(b"short")
    with pytest.raises(FamilyIncompleteError):
        family().save(saved)
    assert (saved / MANIFEST).read_bytes() == before


# --- Files that are not as they should be ---------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    ["../q4.gguf", "a/../../q4.gguf", "/q4.gguf", "C:/q4.gguf", "..\\q4.gguf", "", "a\0b"],
)
def test_paths_that_leave_the_folder_are_refused(saved: Path, file: str) -> None:
    (saved.parent / "q4.gguf").write_bytes(CONTENT["q4"])
    edit(saved, tier_file=file)
    with pytest.raises(UnsafePathError, match="leaves the family's folder"):
        Family.load(saved)
    with pytest.raises(UnsafePathError):
        tier("q4", file) if file else Tier(**{**tier("q4").model_dump(), "file": ""})


@pytest.mark.parametrize("through", ["file", "folder"])
def test_links_that_leave_the_folder_are_refused(saved: Path, through: str) -> None:
    outside = saved.parent / "outside"
    outside.mkdir()
    (outside / "q4.gguf").write_bytes(CONTENT["q4"])
    if through == "file":
        (saved / "q4.gguf").unlink()
        (saved / "q4.gguf").symlink_to(outside / "q4.gguf")
    else:
        (saved / "sub").symlink_to(outside)
        edit(saved, tier_file="sub/q4.gguf")
    with pytest.raises(UnsafePathError, match="symbolic link"):
        Family.load(saved)


def test_links_that_stay_inside_are_fine(saved: Path) -> None:
    (saved / "q4.gguf").rename(saved / "blob")
    (saved / "q4.gguf").symlink_to(saved / "blob")
    Family.load(saved)


def test_a_family_behind_a_link_is_fine(saved: Path) -> None:
    link = saved.parent / "link"
    link.symlink_to(saved)
    assert Family.load(link).folder == link


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / "q8.gguf").unlink()
    with pytest.raises(FamilyIncompleteError, match=r"q8\.gguf' is missing.*tierwise build"):
        Family.load(saved)


def test_a_wrong_size_is_named(saved: Path) -> None:
    (saved / "q8.gguf").write_bytes(CONTENT["q8"][:-1])
    with pytest.raises(FamilyIncompleteError, match="has 999 bytes, the manifest says 1,000"):
        Family.load(saved, verify=False)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_found(saved: Path) -> None:
    flip_a_byte(saved / "q8.gguf")
    with pytest.raises(DamagedTierError, match=r"'q8'.*sha256"):
        Family.load(saved)
    Family.load(saved, verify=False)  # asked not to look


def test_hashes_are_remembered_until_a_file_changes(saved: Path) -> None:
    Family.load(saved)
    store = Path(os.environ["TIERWISE_HOME"]) / "hashes.json"
    stored = json.loads(store.read_text())
    assert {path: digest for path, (_, _, digest) in stored.items()} == {
        str(saved / f"{name}.gguf"): hashlib.sha256(content).hexdigest()
        for name, content in CONTENT.items()
    }

    # A change that keeps size and time is not seen: the second load did not read the file.
    path = saved / "q4.gguf"
    times = path.stat()
    flip_a_byte(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    Family.load(saved)
    # Any other is.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000))
    with pytest.raises(DamagedTierError):
        Family.load(saved)


# --- Manifests that are not as they should be -----------------------------------------------------


def test_a_folder_without_manifest_says_how_to_finish(tmp_path: Path) -> None:
    with pytest.raises(FamilyNotFoundError, match="tierwise build BASE --out"):
        Family.load(tmp_path)
    with pytest.raises(FamilyNotFoundError):
        Family.load(tmp_path / "nowhere")


def test_an_older_schema_is_read(saved: Path) -> None:
    edit(saved, schema_version=1)
    assert Family.load(saved).tiers[0].kv_type == "f16"


def test_a_newer_schema_says_upgrade(saved: Path) -> None:
    edit(saved, schema_version=SCHEMA_VERSION + 1, invented_later={"a": 1})
    told = rf"schema version {SCHEMA_VERSION + 1}.*pip install -U tierwise"
    with pytest.raises(FamilySchemaError, match=told):
        Family.load(saved)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"garbage", b"null", b"[]", b"{}", b'{"schema_version": 1}', b"\xff\xfe{}"],
)
def test_garbage_is_named(saved: Path, content: bytes) -> None:
    (saved / MANIFEST).write_bytes(content)
    with pytest.raises(FamilySchemaError, match=r"family\.json' is not a valid family"):
        Family.load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"tiers": []},
        {"surprise": 1},
        {"tier_surprise": 1},
        {"tier_name": "../q4"},
        {"tier_name": ""},
        {"tier_name": "q8"},  # twice
        {"tier_sha256": "abc"},
        {"tier_bytes": -1},
        {"tier_bytes": "many"},
        {"schema_version": "one"},
    ],
    ids=str,
)
def test_fields_that_make_no_sense_are_named(saved: Path, changes: dict[str, Any]) -> None:
    edit(saved, **changes)
    with pytest.raises(FamilySchemaError) as caught:
        Family.load(saved)
    assert "Rebuild the family" in str(caught.value)
    assert isinstance(caught.value, FamilyError)
