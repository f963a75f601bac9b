"""Bytes of tokens in, safe text out, however the bytes are cut."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from tierwise.runtime.text_stream import TextStream

TEXTS = ("plain", "naïve café", "日本語のテキスト", "a🎉b👩‍👩‍👧c🇫🇷", "\x00\t\n", "", "ÿĀ𐍈￿")


def run(pieces: Iterable[bytes], *stop: str) -> tuple[list[str], bool]:
    """What comes out after each piece, and at the end; and whether a stop text was met."""
    stream = TextStream(stop)
    out = [stream.push(piece) for piece in pieces]
    return [*out, stream.push(b"", final=True)], stream.stopped


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """The data in pieces of 0 to 4 bytes."""
    pieces = []
    while data:
        size = rng.randint(0, 4)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("text", TEXTS)
def test_characters_come_whole_at_every_cut(text: str) -> None:
    data = text.encode()
    for at in range(len(data) + 1):
        out, stopped = run([data[:at], data[at:]])
        assert "".join(out) == text
        assert "\ufffd" not in out[0] and not stopped
        # As soon as they are whole: nothing is held back without a reason.
        assert out[0] == data[:at].decode(errors="ignore")


@pytest.mark.parametrize("text", TEXTS)
def test_single_bytes_make_the_text(text: str) -> None:
    out, _ = run(bytes([byte]) for byte in text.encode())
    assert "".join(out) == text
    assert out[-1] == ""


def test_broken_bytes_become_replacement_characters() -> None:
    assert run([b"a\xff", b"b"]) == (["a\ufffd", "b", ""], False)
    assert run(["é".encode()[:1]]) == (["", "\ufffd"], False)  # the reply ended too early


def test_a_stop_text_ends_the_reply_and_is_no_part_of_it() -> None:
    assert run([b"one STOP two"], "STOP") == (["one ", ""], True)
    assert run([b"one ST", b"OP two", b"three"], "STOP") == (["one ", "", "", ""], True)
    assert run([b"STOP"], "STOP") == (["", ""], True)


def test_what_may_become_a_stop_text_is_held_back() -> None:
    out, stopped = run([b"one S", b"T", b"ART", b" S"], "STOP")
    assert out == ["one ", "", "START", " ", "S"]
    assert not stopped


def test_the_longest_possible_beginning_is_held_back() -> None:
    assert run([b"aab", b"aab", b"c"], "aabaac") == (["", "aab", "aabc", ""], False)
    assert run([b"aab", b"aab", b"aac", b"x"], "aabaac") == (["", "aab", "", "", ""], True)


def test_the_first_of_several_stop_texts_counts() -> None:
    assert run([b"a longer text"], "text", "long") == (["a ", ""], True)
    assert run([b"a lo", b"st text"], "text", "long") == (["a ", "lost ", ""], True)


def test_stop_texts_may_be_of_any_characters() -> None:
    data = "eins 🎉🎊 zwei".encode()
    for at in range(len(data)):
        out, stopped = run([data[:at], data[at:]], "🎉🎊")
        assert ("".join(out), stopped) == ("eins ", True)


def test_empty_stop_texts_stop_nothing() -> None:
    assert run([b"text"], "", "") == (["text", ""], False)


@pytest.mark.parametrize("seed", range(8))
def test_any_cut_of_any_text_is_the_same(seed: int) -> None:
    """Against the definition: the text up to where the first stop text is complete."""
    rng = random.Random(seed)
    for _ in range(200):
        text = "".join(rng.choices("abé🎉", k=rng.randint(0, 14)))
        stop = [
            "".join(rng.choices("abé🎉", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 3))
        ]
        # The first to be complete wins; of those that end together, the longest.
        ends = sorted(
            (text.find(one) + len(one), -len(one), text.find(one)) for one in stop if one in text
        )
        expected = text[: ends[0][2]] if ends else text
        out, stopped = run([bytes([b]) for b in text.encode()], *stop)
        assert ("".join(out), stopped) == (expected, bool(ends)), (text, stop)

        # In larger pieces several may be complete at once: then the one that starts first wins.
        pieces = cut(text.encode(), rng)
        out, stopped = run(pieces, *stop)
        assert stopped == bool(ends)
        assert text.startswith("".join(out))
        if len(stop) < 2:
            assert "".join(out) == expected
        # Nothing that was shown is part of a stop text.
        assert not any(one in "".join(out) for one in stop)
