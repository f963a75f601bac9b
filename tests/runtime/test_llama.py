"""Models and contexts of llama.cpp: what is refused, what is read, what is freed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import CHATML_TOOLS, END, START, write_scripted_gguf, write_tiny_gguf

from tierwise.runtime.context import Context
from tierwise.runtime.errors import (
    DamagedModelError,
    EngineError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from tierwise.runtime.llama import Model, _on_log, captured_log

# --- Files that cannot be loaded ------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.gguf"):
        Model(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelNotFoundError):
        Model(tmp_path)  # a folder


@pytest.mark.parametrize(
    ("cut", "cause"),
    [
        (lambda whole: b"", "failed to read magic"),
        (lambda whole: b"this is some text", "invalid magic characters: 'this'"),
        (lambda whole: whole[:3000], "failed to read key-value pairs"),
        (lambda whole: whole[: len(whole) // 2], "not within the file bounds"),
        (lambda whole: whole[:-1], "not within the file bounds"),
        (lambda whole: whole[:100] + b"\xff" * 8 + whole[108:], "failed to read key-value pairs"),
    ],
    ids=["empty", "text", "header only", "half", "all but one byte", "garbled"],
)
def test_a_damaged_file_is_refused_with_the_cause(
    tiny_gguf: Path, tmp_path: Path, cut: object, cause: str
) -> None:
    assert callable(cut)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(cut(tiny_gguf.read_bytes()))
    with pytest.raises(DamagedModelError) as caught:
        Model(path)
    assert cause in str(caught.value)
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)  # what to do


def test_the_cause_is_not_looked_for_in_metadata(tmp_path: Path) -> None:
    """llama.cpp logs the chat template while loading, and templates speak of errors."""
    for sign in ("gguf_init", "error loading model", "failed to"):
        template = f"{sign}{CHATML_TOOLS}"
        path = write_tiny_gguf(tmp_path / "tiny.gguf", chat_template=template)
        path.write_bytes(path.read_bytes().replace(b"smollm", b"sm0llm"))
        with pytest.raises(UnsupportedModelError, match=r"loaded: .*unknown pre-tokenizer"):
            Model(path)


def test_an_unknown_architecture_is_unsupported(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", architecture="perceptron")
    with pytest.raises(UnsupportedModelError, match=r"'perceptron'.*install -U llama-cpp-python"):
        Model(path)


def test_an_unknown_tokenizer_is_unsupported(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    assert whole.count(b"smollm") == 1  # tokenizer.ggml.pre
    path = tmp_path / "tiny.gguf"
    path.write_bytes(whole.replace(b"smollm", b"sm0llm"))
    with pytest.raises(UnsupportedModelError, match="pre-tokenizer"):
        Model(path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_too_little_memory_is_not_called_damage(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "large.gguf", width=512, ffn=4096)  # 60 MB
    code = """if True:
        import resource, sys, psutil
        from pathlib import Path
        from tierwise.runtime.errors import OutOfMemoryError
        from tierwise.runtime.context import Context
        from tierwise.runtime.llama import Model
        small = Model(Path(sys.argv[1]), vocab_only=True)
        limit = psutil.Process().memory_info().vms + 20 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            Model(Path(sys.argv[1]))
        except OutOfMemoryError as error:
            print("model:", error)
        limit += 200 * 2**20
    """
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "model:" in run.stdout and "smaller tier" in run.stdout


# --- What a model says of itself ------------------------------------------------------------------


def test_a_model_describes_itself(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", layers=3, width=64, heads=4, kv_heads=2)
    fields = gguf.GGUFReader(path).tensors
    with Model(path) as model:
        assert model.architecture == "llama"
        assert model.layers == 3
        assert model.context_tokens == 512
        assert model.parameters == sum(int(np.prod(tensor.shape)) for tensor in fields)
        assert model.metadata["general.license"] == "apache-2.0"
        assert model.chat_template == CHATML_TOOLS
        assert model.kv_bytes_per_token == 3 * 2 * (16 + 16) * 2  # layers, heads, k + v, F16
        assert (model.token_text(model.bos), model.token_text(model.eos)) == (START, END)
        assert model.token_text(-1) == ""


def test_heads_of_their_own_width_count(tmp_path: Path) -> None:
    with Model(write_scripted_gguf(tmp_path / "a.gguf", "hi")) as model:
        assert model.kv_bytes_per_token == 1 * (64 + 64) * 2  # not 512 / 12 wide


def test_a_vocabulary_can_be_read_alone(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as whole, Model(tiny_gguf, vocab_only=True) as words:
        assert words.tokenize("hello there") == whole.tokenize("hello there")
        assert words.chat_template == whole.chat_template
        assert words.vocab_size == whole.vocab_size


# --- Tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello world",
        " the weather in Paris",
        "é ü ñ ß",
        "🎉👩‍👩‍👧‍👦🇫🇷",
        "日本語と中文",
        "\x00\t\r\n",
        "e\u0301 \u202e ﷽",
        '{"name": "x"}',
    ],
)
def test_text_comes_back_from_its_tokens(tiny_gguf: Path, text: str) -> None:
    with Model(tiny_gguf) as model:
        tokens = model.tokenize(text)
        assert b"".join(map(model.piece, tokens)).decode() == text


def test_merges_make_fewer_tokens(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model:
        assert len(model.tokenize("hello")) == 1
        assert len(model.tokenize("olleh")) == 5


def test_control_tokens_are_known_and_silent(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model:
        start, end = model.tokenize(START + END)
        assert model.is_end(end) and not model.is_end(start)
        assert model.piece(start) == model.piece(end) == b""
        assert len(model.tokenize(START, special=False)) == len(START)


def test_text_that_is_no_unicode_does_no_harm(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model:
        assert b"".join(map(model.piece, model.tokenize("a\ud800b"))) == b"a?b"


def test_tags_are_shown_on_demand(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model:
        (start,) = model.tokenize(START)
        model.show_tag("</tool_call>")  # many tokens here: nothing to do
        model.show_tag(START)
        assert model.piece(start) == START.encode()
        assert b"".join(map(model.piece, model.tokenize("</tool_call>"))) == b"</tool_call>"


# --- Owners ---------------------------------------------------------------------------------------


def test_what_was_closed_says_so(tiny_gguf: Path) -> None:
    model = Model(tiny_gguf)
    context = Context(model, 256, threads=1)
    context.close()
    context.close()
    with pytest.raises(EngineError, match="was closed"):
        context.decode([5], 0)
    model.close()
    model.close()
    with pytest.raises(EngineError, match="was closed"):
        model.tokenize("hello")
    with pytest.raises(EngineError, match="was closed"):
        Context(model, 256, threads=1)


def test_llama_cpp_is_quiet(tiny_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Model(tiny_gguf) as model, Context(model, 256, threads=1) as context:
        context.decode([5], 0)
        assert any("llama" in line for line in model.load_log)
    assert capfd.readouterr() == ("", "")


def test_what_other_threads_have_it_say_is_left_out() -> None:
    """A context that restores what does not fit, say, while this thread loads a model."""
    with captured_log() as lines:
        other = threading.Thread(target=_on_log, args=(2, b"no cells", None))
        other.start()
        other.join()
        assert lines == []
        _on_log(2, b"mine", None)
        assert lines == ["mine"]


def test_captures_nest(tiny_gguf: Path) -> None:
    heard: list[str] = []
    with captured_log(heard.append) as outer:
        with Model(tiny_gguf) as model:
            assert model.load_log  # an inner capture of its own
        assert outer == heard == []
        Context(Model(tiny_gguf), 256, threads=1).close()
