"""``tierwise connect`` and ``disconnect``, and a chat model over a family with a remote tier."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from family_factory import TierSpec, make_family
from openai_server import OpenAIServer, openai_server
from scripted_model import FRUIT, write_scripted_gguf
from typer.testing import CliRunner

from tierwise import ChatTierwise
from tierwise.plugin.cli import app
from tierwise.runtime.family import Family
from tierwise.runtime.files import home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    file = write_scripted_gguf(tmp_path / "local.gguf", FRUIT, context=2048)
    return make_family(tmp_path / "family", [TierSpec("local", file)]).folder


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server() as running:
        yield running


def run(*arguments: Any, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done.stderr if code else done.stdout


def test_a_server_becomes_a_tier_and_goes_again(folder: Path, server: OpenAIServer) -> None:
    options = ("--url", server.url, "--model", "great-model")
    found = json.loads(run("connect", folder, "far", *options, "--success", 0.9, "--json"))
    assert found["seconds"] > 0 and len(server.asked) == 1
    allowed = home() / "remotes.json"
    assert len(json.loads(allowed.read_text(encoding="utf-8"))["allowed"]) == 1
    (remote,) = found["remotes"]
    assert (remote["name"], remote["model"], remote["success"]) == ("far", "great-model", 0.9)
    shown = json.loads(run("show", folder, "--json"))
    assert shown["remotes"] == found["remotes"]
    assert "far: great-model at http://127.0.0.1" in run("show", folder)
    with ChatTierwise(family=str(folder), threads=1, model="far") as model:
        reply = model.invoke("Tell me of the banana")
    assert reply.content == "From far away." and reply.response_metadata["tier"] == "far"
    # Connecting it anew changes it.
    run("connect", folder, "far", *options, "--context-tokens", 512, "--no-check")
    assert Family.load(folder).remotes[0].context_tokens == 512
    assert "no longer" in run("disconnect", folder, "far")
    assert Family.load(folder).remotes == ()
    assert "there is no remote tier 'far'" in run("disconnect", folder, "far", code=2)


def test_what_cannot_be_connected(folder: Path, server: OpenAIServer) -> None:
    before = (folder / "family.json").read_bytes()
    server.mode = "broken"
    asked = ("--url", server.url, "--model", "m")
    assert "500" in run("connect", folder, "far", *asked, code=2)
    unchecked = (*asked, "--no-check")
    assert "give the remote one another name" in run("connect", folder, "local", *unchecked, code=2)
    assert "url" in run(
        "connect", folder, "far", "--url", "file:///etc", "--model", "m", "--no-check", code=2
    )
    key = ("--key-variable", "NOT SET")
    assert "api_key_env" in run("connect", folder, "far", *unchecked, *key, code=2)
    assert (folder / "family.json").read_bytes() == before
