"""What users say of replies changes later forecasts, and decisions are logged if that is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_factory import TierSpec, make_family
from langchain_core.messages import AIMessage
from scripted_model import FRUIT, write_scripted_gguf

from tierwise import Budget, ChatTierwise
from tierwise.routing.decision_log import read_log
from tierwise.runtime.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("families")
    file = write_scripted_gguf(work / "fruit.gguf", FRUIT, context=2048)
    specs = [TierSpec("small", file, kl=0.1), TierSpec("large", file)]
    return make_family(work / "pair", specs).folder


def success(model: ChatTierwise) -> dict[str, float]:
    return {f.tier: f.success for f in model.explain("Tell me of a banana").forecasts}


def test_feedback_on_a_reply_changes_what_is_forecast(folder: Path) -> None:
    with ChatTierwise(family=str(folder), threads=1, budget=Budget(quality=0)) as model:
        before = success(model)
        for number in range(6):
            reply = model.invoke(f"Tell me of an apple, {number}")
            assert reply.response_metadata["tier"] == "small"
            model.feedback(reply, ok=False)
        after = success(model)
        assert after["small"] < before["small"] - 0.1 and after["large"] == before["large"]
        other = model.invoke("Tell me of a cherry")
        model.feedback(other.response_metadata["id"], ok=True)
        assert success(model)["small"] > after["small"]
        for wrong in (other, "nobody", "x" * 32):  # each reply can be judged once
            with pytest.raises(ConfigError, match="no reply"):
                model.feedback(wrong, ok=True)
        with pytest.raises(ConfigError, match="none of them"):
            model.feedback(AIMessage("from another model"), ok=True)


def test_decisions_are_logged_with_what_was_said_of_them(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with ChatTierwise(family=str(folder), threads=1, decision_log=path) as model:
        replies = [model.invoke(f"Tell me of a {fruit}") for fruit in ("banana", "durian")]
        model.feedback(replies[0], ok=True)
    rows = list(read_log(path))
    assert [row.id for row in rows] == [reply.response_metadata["id"] for reply in replies]
    assert [row.feedback for row in rows] == [True, None]
    assert all(row.call is None and row.reply is None for row in rows)
    assert b"durian" not in path.read_bytes()
    with ChatTierwise(family=str(folder), threads=1, decision_log=path, log_text=True) as model:
        model.invoke("Tell me of a grapefruit")
        model.feedback(replies[1], ok=False)  # of an earlier process, as far as this model knows
    *_, durian, grapefruit = read_log(path)
    assert durian.feedback is False
    assert grapefruit.call is not None and grapefruit.reply is not None
    assert FRUIT["grapefruit"] in grapefruit.reply["text"]


def test_models_with_other_logs_do_not_share_a_router(folder: Path, tmp_path: Path) -> None:
    one = ChatTierwise(family=str(folder), threads=1)
    other = ChatTierwise(family=str(folder), threads=1, decision_log=tmp_path / "log")
    with one, other:
        assert one.router is not other.router
        assert one.router is ChatTierwise(family=str(folder), threads=1).router
