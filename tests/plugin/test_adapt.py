"""``ChatTierwise(adapt=True)``: variants are made beside calls, and found at the next start."""

from __future__ import annotations

from pathlib import Path

from family_factory import TierSpec, make_family
from tiny_models import write_tiny_gguf

from tierwise import Budget, ChatTierwise
from tierwise.routing.variants import PATIENCE
from tierwise.runtime.memory import predict_memory


def test_a_cap_on_memory_brings_a_variant(tmp_path: Path) -> None:
    files = [
        write_tiny_gguf(tmp_path / f"{n}.gguf", layers=n, width=256, ffn=512, context=2048)
        for n in (1, 8)
    ]
    grades = ("easy", "medium", "hard")
    specs = [
        TierSpec(name, file, kl, dict.fromkeys(grades, share), 4000)
        for name, file, kl, share in (("small", files[0], 0.5, 0.4), ("large", files[1], 0.0, 0.9))
    ]
    family = make_family(tmp_path / "family", specs)
    cap = predict_memory(family.path("large"), 2048).total_bytes
    cap -= int(0.3 * family.tier("large").bytes)
    settings = {
        "family": family.folder,
        "budget": Budget(memory=cap, quality=1.0),
        "threads": 1,
        "kv_type": "f16",
        "max_tokens": 40,
    }
    ask = {"choices": ["yes", "no"]}
    with ChatTierwise(**settings) as plain:
        for _ in range(PATIENCE + 1):
            assert plain.invoke("hello", **ask).response_metadata["tier"] == "small"
        assert not (family.folder / "variants").exists(), "only who asks for it gets it"
    with ChatTierwise(**settings, adapt=True) as model:
        for _ in range(PATIENCE):
            assert model.invoke("hello", **ask).response_metadata["tier"] == "small"
        variants = model.router._variants
        assert variants is not None and variants._work.thread is not None
        variants._work.thread.join()
        reply = model.invoke("hello", **ask)
        assert reply.content in ("yes", "no")
        assert reply.response_metadata["tier"].startswith("large-q8_0-")
    with ChatTierwise(**settings, adapt=True) as again:
        tier = again.invoke("hello", **ask).response_metadata["tier"]
        assert tier == reply.response_metadata["tier"]
