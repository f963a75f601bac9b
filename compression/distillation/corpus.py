"""The user's plain text: files, or folders of them, cut into documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tierwise.compression.distillation.conversations import Document
from tierwise.runtime.errors import ConfigError

SUFFIXES = (".txt", ".md", ".jsonl")
SHORTEST = 32
"""Tokens; what is left of a text at its end is no document below that."""

_PER_GROUP = 8
"""Neighbouring parts of one text are held out together."""


def corpus_files(paths: tuple[Path, ...]) -> list[Path]:
    """The files given, and those of `SUFFIXES` in the folders given, in order of their names.

    Raises:
        ConfigError: A path is not there, a file has another suffix, or a folder holds none.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
            if not found:
                raise ConfigError(f"the folder {str(path)!r} has no {', '.join(SUFFIXES)} file")
            files += found
        elif not path.is_file():
            raise ConfigError(f"there is no corpus file {str(path)!r}; check the path")
        elif path.suffix not in SUFFIXES:
            raise ConfigError(
                f"the corpus file {str(path)!r} ends in {path.suffix!r}; readable are "
                f"{', '.join(SUFFIXES)}. Convert it to plain text."
            )
        else:
            files.append(path)
    return files


def corpus_texts(path: Path) -> Iterator[str]:
    """The texts of a file: all of it, or those of its lines where it is ``.jsonl``.

    Raises:
        ConfigError: The file cannot be read, or a line has no "text"; names the line.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the corpus file {str(path)!r} cannot be read: {error}. Save it as UTF-8."
        ) from error
    if path.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text = entry["text"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f'{str(path)!r}, line {number}: not a JSON object with a "text" '
                f"({error or 'it is missing'}). Mend or remove the line."
            ) from error
        if not isinstance(text, str):
            raise ConfigError(f'{str(path)!r}, line {number}: "text" must be a text, not {text!r}.')
        yield text


def corpus_documents(
    paths: tuple[Path, ...],
    tokenize: Callable[[str], list[int]],
    *,
    max_tokens: int,
    start: list[int],
) -> Iterator[Document]:
    """Documents of at most ``max_tokens``; all of their text is to learn.

    Args:
        paths: Files or folders.
        tokenize: Text to token ids; special texts must stay text.
        max_tokens: Longest document.
        start: The tokens that each begins with (the beginning-of-sequence token, or none).
    """
    for file in corpus_files(paths):
        for number, text in enumerate(corpus_texts(file)):
            tokens = tokenize(text)
            room = max_tokens - len(start)
            for part, at in enumerate(range(0, len(tokens), room)):
                piece = tokens[at : at + room]
                if len(piece) >= SHORTEST:
                    group = f"corpus-{file.name}-{number}-{part // _PER_GROUP}"
                    learned = [False] * max(1, len(start)) + [True] * len(piece)
                    ids = start + piece
                    yield Document.of(ids, learned[: len(ids)], "corpus", group)
