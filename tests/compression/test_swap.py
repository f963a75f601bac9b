"""A tier's file is swapped in one step or not at all, and comes back byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from family_factory import TierSpec, make_family
from tiny_models import write_tiny_gguf

from tierwise.compression import swap
from tierwise.compression.swap import WORK, before_swap, swap_tier, undo_swap
from tierwise.runtime.errors import (
    BuildError,
    ConfigError,
    DamagedTierError,
    FamilyIncompleteError,
)
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.files import sha256_of
from tierwise.runtime.profile import load_profile


@pytest.fixture
def family(tmp_path: Path) -> Family:
    files = [write_tiny_gguf(tmp_path / f"{n}.gguf", layers=n, seed=n) for n in (1, 2)]
    specs = [TierSpec("small", files[0], kl=0.1, decode=77.0), TierSpec("large", files[1])]
    return make_family(tmp_path / "family", specs)


def newer(family: Family, tmp_path: Path, seed: int = 9) -> tuple[Tier, Path]:
    """Another file for the small tier."""
    file = write_tiny_gguf(tmp_path / f"new-{seed}.gguf", layers=1, seed=seed)
    record = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    return family.tier("small").model_copy(update=record), file


def content(folder: Path) -> Mapping[str, bytes]:
    """All files but those of the work."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if WORK not in path.parts
    }


def test_the_new_file_has_the_old_name_place_and_speed(family: Family, tmp_path: Path) -> None:
    old = family.tier("small")
    new, file = newer(family, tmp_path)
    changed = swap_tier(family.folder, old, new, file)
    assert changed == Family.load(family.folder)
    assert [tier.name for tier in changed.tiers] == ["small", "large"]
    tier = changed.tier("small")
    assert tier.sha256 == new.sha256 and changed.path(tier).read_bytes() == file.read_bytes()
    assert changed.tier("large") == family.tier("large")
    profile = load_profile(new.sha256)
    assert profile is not None and profile.decode_tokens_per_s == 77.0
    assert (family.folder / "small.md").is_file()
    # The old one is there still, for those who opened the family before.
    assert sha256_of(family.path(old)) == old.sha256
    assert before_swap(changed, tier) == old and before_swap(family, old) is None


def test_undone_swaps_leave_what_was_before(family: Family, tmp_path: Path) -> None:
    before = content(family.folder)
    first, file = newer(family, tmp_path)
    one = swap_tier(family.folder, family.tier("small"), first, file)
    second, file = newer(one, tmp_path, seed=10)
    swap_tier(family.folder, one.tier("small"), second, file)
    again, tier = undo_swap(family.folder)
    assert tier == one.tier("small") and again == Family.load(family.folder) == one
    undone, tier = undo_swap(family.folder, "small")
    assert tier == family.tier("small") and undone == family
    after = content(family.folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"small.md", "large.md"}
    with pytest.raises(ConfigError, match="keeps nothing that a tier was before"):
        undo_swap(family.folder)


def test_undo_says_what_it_cannot_do(family: Family, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keeps nothing that tier 'small' was before"):
        undo_swap(family.folder, "small")
    with pytest.raises(ConfigError, match="no tier 'tiny'"):
        undo_swap(family.folder, "tiny")
    for name in ("small", "large"):
        current = Family.load(family.folder)
        new, file = newer(current, tmp_path, seed=20 + len(name))
        new = new.model_copy(update={"name": name})
        swap_tier(family.folder, current.tier(name), new, file)
    with pytest.raises(ConfigError, match=r"small, large.*--tier"):
        undo_swap(family.folder)
    family.path("large").unlink()
    with pytest.raises(FamilyIncompleteError, match=r"large\.gguf"):
        undo_swap(family.folder, "large")
    assert Family.load(family.folder).tier("large").sha256 != family.tier("large").sha256


def test_a_tier_that_was_changed_meanwhile_is_left_alone(family: Family, tmp_path: Path) -> None:
    old = family.tier("small")
    first, file = newer(family, tmp_path)
    swap_tier(family.folder, old, first, file)
    before = content(family.folder)
    second, other = newer(family, tmp_path, seed=10)
    with pytest.raises(BuildError, match=r"'small' of .* was changed while it was worked on"):
        swap_tier(family.folder, old, second, other)
    gone = family.model_copy(update={"tiers": family.tiers[1:]})
    gone.save(family.folder)
    with pytest.raises(BuildError, match="is gone"):
        swap_tier(family.folder, old, second, other)
    assert {**content(family.folder), "family.json": b""} == {**before, "family.json": b""}


def test_a_file_that_rotted_meanwhile_is_noticed(family: Family, tmp_path: Path) -> None:
    new, file = newer(family, tmp_path)
    path = family.path("small")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = content(family.folder)
    with pytest.raises(DamagedTierError, match="small"):
        swap_tier(family.folder, family.tier("small"), new, file)
    assert content(family.folder) == before


def test_what_else_was_changed_meanwhile_stays(family: Family, tmp_path: Path) -> None:
    other = write_tiny_gguf(family.folder / "third.gguf", layers=3, seed=3)
    record = {"name": "third", "file": other.name, "sha256": sha256_of(other)}
    third = family.tier("large").model_copy(update={**record, "bytes": other.stat().st_size})
    family.model_copy(update={"tiers": (*family.tiers, third)}).save(family.folder)
    new, file = newer(family, tmp_path)
    changed = swap_tier(family.folder, family.tier("small"), new, file)
    assert [tier.name for tier in changed.tiers] == ["small", "large", "third"]


def test_a_manifest_that_cannot_be_written_leaves_no_new_file(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(family.folder)
    new, file = newer(family, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Family, "save", full)
        with pytest.raises(OSError, match="No space"):
            swap_tier(family.folder, family.tier("small"), new, file)
    assert content(family.folder) == before


def test_a_family_without_the_work_folder_works(family: Family, tmp_path: Path) -> None:
    new, file = newer(family, tmp_path)
    swap_tier(family.folder, family.tier("small"), new, file)
    shutil.rmtree(family.folder / swap.WORK)
    assert Family.load(family.folder).tier("small").sha256 == new.sha256
    with pytest.raises(ConfigError, match="keeps nothing"):
        undo_swap(family.folder)
