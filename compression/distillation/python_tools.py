"""Tools read from Python's own standard library: real names, arguments and descriptions.

Nothing is run but the imports of the modules named here. What is found depends on the version of
Python, so the same seed gives the same conversations only under the same version.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from tierwise.compression.distillation.values import (
    Argument,
    Draw,
    one_of,
    real,
    several,
    tool_schema,
    truth,
    whole,
    words,
)
from tierwise.runtime.chat import JSONObject, Tool

MODULES = """
array base64 binascii bisect builtins calendar cmath codecs collections colorsys configparser
csv datetime decimal difflib email.header email.headerregistry email.message email.utils
fileinput filecmp fnmatch fractions ftplib gettext glob graphlib gzip hashlib heapq hmac html
http.client http.cookies imaplib inspect io ipaddress itertools json keyword linecache locale
logging lzma mailbox math mimetypes netrc ntpath numbers operator os os.path pathlib pkgutil
platform plistlib poplib posixpath pprint queue quopri random re reprlib sched secrets selectors
shelve shlex shutil smtplib socket sqlite3 stat statistics string stringprep struct subprocess
symtable sysconfig tarfile tempfile textwrap threading time timeit tokenize traceback types
unicodedata urllib.parse urllib.request urllib.robotparser uuid wave webbrowser wsgiref.util
xml.dom.minidom xml.etree.ElementTree xml.sax.saxutils zipfile zlib zoneinfo
"""
"""Whose import changes nothing outside of the process."""

LEFT_OUT = "math.factorial math.gcd math.hypot math.lcm"
"""Functions that a public test of tool calling asks for by the same name (BFCL simple_python)."""

VERBS = """
add append apply build calculate change check close compare compute construct convert copy count
create decode delete determine disable divide dump emit enable encode ensure escape execute extract
fetch fill find flush force format generate get give guess import increment initialize insert invert
issue iterate join list load locate lock log look make map mark match merge move multiply normalize
open pack pad parse print process produce put quote raise read reduce register remove rename replace
report reset resolve retrieve return reverse rotate round run save search select send set show shift
shuffle shut sleep sort split start stop store strip subtract swap test transform translate truncate
turn undo unpack unquote update use validate verify wait wrap write yield
"""
"""What a docstring begins with that can be asked for."""

MOST_ARGUMENTS = 6

_MARKUP = re.compile(r"`+|:\w+:|\B\*(?=\w)|(?<=\w)\*\B")
_SIGNATURE = re.compile(r"^[\w.]+\(.*?\)\s*(?:->\s*\w+(?:\[.*?\])?)?[\s.:–-]*")


@dataclass(frozen=True, slots=True)
class PythonTool:
    """A function of the standard library as a tool.

    Args:
        tool: What a model is offered.
        arguments: Its arguments.
        does: The first sentence of its docstring, without a full stop: "Return the …".
        module: Where it is from.
    """

    tool: Tool
    arguments: tuple[Argument, ...]
    does: str
    module: str


@cache
def python_tools() -> tuple[PythonTool, ...]:
    """All functions of `MODULES` that have a docstring and arguments of known kinds, by name."""
    found: dict[str, PythonTool] = {}
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modules are on their way out
        for module in MODULES.split():
            for name, function, bound in _functions(module):
                made = _read(module, name, function, bound)
                # Aliases (os.path and posixpath) say the same of themselves.
                known = name in found or name in LEFT_OUT.split()
                if made is not None and not known and made.does not in said:
                    found[name] = made
                    said.add(made.does)
    return tuple(found[name] for name in sorted(found))


def _functions(module: str) -> Iterator[tuple[str, Any, bool]]:
    """The public functions and methods of a module, with whether the first argument is bound."""
    try:
        loaded = importlib.import_module(module)
    except ImportError:  # not part of every Python
        return
    for name, value in sorted(vars(loaded).items()):
        if name.startswith("_"):
            continue
        if inspect.isroutine(value):
            yield f"{module}.{name}", value, False
        elif inspect.isclass(value) and value.__module__.split(".")[0] == module.split(".")[0]:
            for inner, method in sorted(vars(value).items()):
                if inspect.isroutine(method) and not inner.startswith("_"):
                    free = isinstance(method, staticmethod | classmethod)
                    yield f"{module}.{name}.{inner}", getattr(value, inner), not free


def _read(module: str, name: str, function: Any, bound: bool) -> PythonTool | None:
    does = first_sentence(inspect.getdoc(function) or "")
    if not does:
        return None
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # some built-in functions have none
        return None
    arguments = []
    for parameter in parameters[1 if bound else 0 :]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        kind = _kind(parameter.name, parameter.default)
        if kind is None and required:
            return None
        if kind is not None:
            schema, draw, description = kind
            if not required and isinstance(parameter.default, int | float | str):
                description += f" (default {parameter.default!r})" if parameter.default else ""
            schema = {**schema, "description": description}
            arguments.append(Argument(parameter.name, schema, draw, required))
    if not 1 <= len(arguments) <= MOST_ARGUMENTS:
        return None
    tool = Tool(_short(name), f"{does}.", tool_schema(arguments))
    return PythonTool(tool, tuple(arguments), does, module)


def first_sentence(docstring: str) -> str:
    """What a function does, in a sentence that begins with a verb; "" where there is none."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    plain = _MARKUP.sub("", _SIGNATURE.sub("", paragraph)).strip()
    sentence = re.split(r"(?<=[^.A-Z])\.(?:\s|$)|:\s|;\s|\s--\s", plain)[0].strip(" .")
    verb = sentence.split(" ")[0].lower()
    fits = 3 <= len(sentence.split()) <= 24 and bool({verb, verb[:-1]} & set(VERBS.split()))
    return sentence if fits and not re.search(r"[{}<>|=*\\]|__|  ", sentence) else ""


def _short(name: str) -> str:
    """Names as people call the functions: without the built-in module's name."""
    return name.removeprefix("builtins.").replace("os.path.", "path.")


# --- What an argument is, by its name and its default ---------------------------------------------

Kind = tuple[JSONObject, Draw, str]

_PATHS = words(
    "report.txt", "/var/log/syslog", "data/input.csv", "photos/summer.jpg", "notes.md",
    "/home/ana/todo.txt", "archive.tar.gz", "src/main.py", "/tmp/cache", "budget_2023.xlsx",
    "music/track01.mp3", "config.ini", "/etc/hosts", "backup/db.sqlite",
)  # fmt: skip
_TEXTS = words(
    "hello world", "The quick brown fox", "banana", "apples and pears", "good morning",
    "2 + 2 = 4", "north wind", "Tuesday", "level", "open sesame", "a-b-c", "snow leopard",
    "Grüße aus Köln", "Ctrl+Alt+Q", "MixedCase", "one,two,three", "x=1&y=2", "tea & cake",
)  # fmt: skip
_NAMES = words(
    "alpha", "backup", "Maria", "worker-3", "settings", "inbox", "temperature", "user_id",
    "Content-Type", "logger", "main", "index", "session", "width", "queue1",
)  # fmt: skip
_HOSTS = words("example.org", "192.168.1.20", "mail.example.com", "localhost", "10.0.0.7")
_URLS = words(
    "https://example.org/index.html", "http://localhost:8080/status",
    "https://shop.example.com/items?id=42", "ftp://files.example.net/pub", "https://example.com",
)  # fmt: skip
_PATTERNS = words("*.txt", r"\d+", "[a-z]+", "data_*.csv", "^abc", "*.py")
_MODES = words("r", "w", "rb", "a")
_NUMBERS, _WORDS = several(real(-20, 120)), several(_NAMES, 4)

_BY_NAME: Mapping[str, tuple[tuple[JSONObject, Draw], str]] = MappingProxyType({
    name: (kind, description)
    for names, kind, description in (
        ("x y z a b c p q real imag", real(-50, 150), "Number {name}"),
        ("r g h s_ v_ alpha beta gamma lambd", real(0, 10), "Number {name}"),
        ("mu mean", real(0, 100), "The mean"),
        ("sigma stdev", real(0.1, 12), "The standard deviation"),
        ("low lower", real(0, 20), "Lower end"),
        ("high upper", real(21, 90), "Upper end"),
        ("n k m i j num number count integer", whole(1, 60), "Whole number {name}"),
        ("size length nbytes bufsize chunksize amt", whole(8, 4096), "How many bytes or items"),
        ("width w l columns maxlen maxlinelen", whole(5, 100), "Width in characters"),
        ("limit maxsplit maxlevel depth times repeat", whole(1, 20), "At most so many"),
        ("offset start index pos lo lineno line_number", whole(0, 40), "Where to start"),
        ("stop end hi endpos", whole(41, 200), "Where to stop"),
        ("step indent tabsize level compresslevel", whole(1, 9), "How much"),
        ("year theyear y1", whole(1900, 2030), "Year"),
        ("y2", whole(2031, 2090), "A later year"),
        ("month themonth", whole(1, 12), "Month, 1 to 12"),
        ("day weekday firstweekday", whole(1, 28), "Day"),
        ("hour", whole(0, 23), "Hour"),
        ("minute second", whole(0, 59), "0 to 59"),
        ("port", whole(1024, 9000), "Port number"),
        ("pid uid gid fd signum", whole(3, 3000), "Number of it"),
        ("base", whole(2, 36), "Number base"),
        ("bits prec ndigits precision", whole(1, 16), "How many digits"),
        ("priority", whole(0, 10), "Smaller is sooner"),
        ("timeout delay secs seconds", real(0.5, 60), "Seconds"),
        ("timestamp t", whole(1_000_000, 1_700_000_000), "Seconds since 1970"),
        ("path filename file pathname src source fname pathlike root dirname directory dir",
         _PATHS, "Path of a file or folder"),
        ("dst target targetpath dest destination arcname", _PATHS, "Where it goes"),
        ("string s text str line chars unistr rest message msg word value content input",
         _TEXTS, ""),
        ("old", words("cat", "north", "red", "Monday"), "What to replace"),
        ("new repl replacement", words("dog", "south", "blue", "Friday"), "What to put there"),
        ("name key section option attribute attr field header tag prefix suffix who folder mailbox",
         _NAMES, ""),
        ("host hostname server address addr ip", _HOSTS, "Host name or address"),
        ("url uri link", _URLS, "Web address"),
        ("user username", words("ana", "bob77", "root", "guest"), "User name"),
        ("pattern pat", _PATTERNS, "Pattern to match"),
        ("sep separator delimiter", words(",", ";", " ", "-", "::"), "What stands between"),
        ("fillchar char chr ch", words("*", "0", "-", "x"), "One character"),
        ("fmt format spec", words("%Y-%m-%d", "%H:%M", ">10", ".2f"), "Format"),
        ("encoding charset", one_of("utf-8", "ascii", "latin-1", "utf-16"), "Text encoding"),
        ("errors", one_of("strict", "ignore", "replace"), "What to do with bad characters"),
        ("form", one_of("NFC", "NFD", "NFKC", "NFKD"), "Normal form"),
        ("mode", _MODES, "How to open it"),
        ("method", one_of("inclusive", "exclusive"), "Method"),
        ("data values xs numbers population seq heap dist", _NUMBERS, "Numbers"),
        ("weights", several(real(0, 5)), "Weight of each"),
        ("iterable items list names lines args fields", _WORDS, "Several texts"),
        ("command cmd", words("ls -l", "make test", "git status", "echo hello"), "Command line"),
        ("sql", words("SELECT * FROM users", "DELETE FROM logs"), "SQL statement"),
        ("cents", whole(1, 500), "Cents"),
        ("strict recursive reverse follow_symlinks casefold quote keepends usedforsecurity "
         "allow_fragments exist_ok missing_ok ignore_errors keep_blank_values sort_keys "
         "skipkeys ensure_ascii grouping monetary signed rename shallow", truth(), "Whether so"),
    )
    for name in names.split()
})  # fmt: skip


def _kind(name: str, default: Any) -> Kind | None:
    """Schema, values and description of an argument; None where nobody could guess."""
    spoken = name.strip("_").replace("_", " ")
    if isinstance(default, bool):
        return *truth(), f"Whether to use {spoken}"
    known = _BY_NAME.get(name) or _BY_NAME.get(name.rstrip("0123456789_"))
    if known is not None:
        (schema, draw), description = known
        return schema, draw, description.format(name=name) or f"The {spoken}"
    if isinstance(default, int):
        return *whole(0, max(10, 3 * abs(default))), spoken.capitalize()
    if isinstance(default, float):
        return *real(0, max(10.0, 3 * abs(default))), spoken.capitalize()
    return None
