"""Rules of the house: which room may use which, what is public, what is packaged."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import tierwise
from tierwise.runtime import errors

ROOT = Path(__file__).parents[1]
ROOMS = ("runtime", "evaluation", "compression", "routing", "plugin")

ARROWS = {
    "runtime": {"runtime"},
    "evaluation": {"runtime", "evaluation"},
    "compression": {"runtime", "evaluation", "compression"},
    "routing": {"runtime", "evaluation", "routing"},
    "plugin": set(ROOMS),
}
"""Which rooms the modules of each room may import."""

PUBLIC = [
    "AdapterConfig",
    "Budget",
    "BuildConfig",
    "ChatTierwise",
    "Decision",
    "Family",
    "ModelAdapter",
    "OtherModel",
    "Resources",
    "Router",
    "TierRoutingMiddleware",
    "TierwiseDecisionModel",
    "TierwiseError",
    "TierwiseLLM",
    "adapt_model",
    "adopt_tier",
    "build_family",
    "run_optimization",
]

DATA_TABLES = {"evaluation/tools_for_tests.py", "evaluation/tools_for_calibration.py"}
LONGEST_MODULE = 400

MADE_OF = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "constraints.txt",
    "benchmarks",
    "examples",
    "tests",
)
"""What beside the packages a source distribution holds."""

HEAVY = ("torch", "transformers", "llama_cpp", "langchain", "langchain_core", "numpy")


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module of the packages, with its room ("" for ``src/tierwise``)."""
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            yield room, path
    for path in sorted((root / "src" / "tierwise").rglob("*.py")):
        yield "", path


def run_python(code: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


# --- Arrows ---------------------------------------------------------------------------------------


def wrong_arrows(root: Path) -> list[str]:
    """Imports that point the wrong way, as "file:line imports target"."""
    found = []
    for room, path in modules(root):
        place = path.relative_to(root / "src" / "tierwise" if not room else root)
        package = ("tierwise", *place.parent.parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # At run time the root may only name modules in strings, which it imports on demand.
        nodes = _without_type_checking(tree) if not room else ast.walk(tree)
        for node in nodes:
            for target in _targets(node, package, strings=bool(room)):
                if target[:1] == ("tierwise",) and not _allowed(room, target):
                    found.append(f"{place}:{getattr(node, 'lineno', 0)} imports {'.'.join(target)}")
    return found


def _allowed(room: str, target: tuple[str, ...]) -> bool:
    if target == ("tierwise", "__version__"):
        return True
    # A bare `import tierwise` reaches every room, and so does any public name.
    return bool(room) and len(target) > 1 and target[1] in ARROWS[room]


def _targets(node: ast.AST, package: tuple[str, ...], *, strings: bool) -> list[tuple[str, ...]]:
    """What a node imports, as absolute dotted names in parts."""
    if isinstance(node, ast.Import):
        return [tuple(alias.name.split(".")) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = package[: len(package) - node.level + 1] if node.level else ()
        start += tuple(node.module.split(".")) if node.module else ()
        return [(*start, alias.name) for alias in node.names]
    if strings and isinstance(node, ast.Call) and node.args:
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
        first = node.args[0]
        if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
            return [tuple(str(first.value).split("."))]
    return []


def _without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _without_type_checking(node)


def test_no_room_uses_one_that_stands_on_it() -> None:
    assert wrong_arrows(ROOT) == []
    assert {room for room, _ in modules(ROOT)} == {*ROOMS, ""}


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("runtime/a.py", "import tierwise.plugin.chat"),
        ("runtime/a.py", "import os, tierwise.routing.router as router"),
        ("runtime/a.py", "from tierwise.evaluation.tasks import Task"),
        ("runtime/a.py", "from tierwise import plugin"),
        ("runtime/a.py", "from tierwise import Router"),
        ("runtime/a.py", "import tierwise"),
        ("runtime/a.py", "from ..plugin import chat"),
        ("runtime/a.py", "from ..plugin.chat import ChatTierwise"),
        ("runtime/a.py", "from .. import routing"),
        ("runtime/deep/a.py", "from ... import routing"),
        ("runtime/__init__.py", "from ..routing import budget"),
        ("runtime/a.py", "def f():\n    from tierwise.plugin import chat"),
        ("runtime/a.py", "if TYPE_CHECKING:\n    from tierwise.plugin import chat"),
        ("runtime/a.py", "import_module('tierwise.plugin.chat')"),
        ("runtime/a.py", "importlib.import_module('tierwise.plugin.chat')"),
        ("runtime/a.py", "__import__('tierwise.plugin')"),
        ("evaluation/a.py", "from tierwise.compression.build import build_family"),
        ("compression/a.py", "from tierwise.routing.budget import Budget"),
        ("routing/a.py", "from tierwise.compression.recipe import BuildConfig"),
        ("routing/a.py", "from tierwise.plugin.chat import ChatTierwise"),
        ("plugin/a.py", "from tierwise.somewhere import thing"),
        ("src/tierwise/__init__.py", "from tierwise.runtime.family import Family"),
        ("src/tierwise/__init__.py", "from .runtime import family"),
        ("src/tierwise/__init__.py", "try:\n    import tierwise.runtime\nexcept ImportError: ..."),
    ],
)
def test_the_checker_finds_wrong_arrows(tmp_path: Path, place: str, code: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(f"import os\n{code}\n")
    (found,) = wrong_arrows(tmp_path)
    assert f"{Path(place).name}:" in found and "imports tierwise" in found


def test_the_checker_lets_right_arrows_pass(tmp_path: Path) -> None:
    right = {
        "runtime/a.py": "from tierwise.runtime.chat import Call\nfrom . import b\nfrom .b import c",
        "runtime/deep/a.py": "from .. import b\nfrom tierwise import __version__",
        "evaluation/a.py": "import tierwise.runtime.chat\nfrom ..runtime import chat",
        "compression/a.py": "from tierwise.evaluation import tasks\nimport_module('torch')",
        "routing/a.py": "from tierwise.evaluation.tasks import Task\nfrom .b import c",
        "plugin/a.py": "from tierwise.compression import build\nfrom ..routing import router",
        "src/tierwise/__init__.py": (
            "from importlib import import_module\nif TYPE_CHECKING:\n"
            "    from tierwise.runtime.family import Family\n"
            "import_module('tierwise.runtime.family')"
        ),
    }
    for place, code in right.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(code)
    assert wrong_arrows(tmp_path) == []


# --- Packages -------------------------------------------------------------------------------------


def test_every_folder_with_code_is_packaged() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(("tierwise", *path.parent.relative_to(ROOT).parts))
        for room, path in modules(ROOT)
        if room
    }
    assert sorted(config["packages"]) == sorted(found | {"tierwise"})
    for package, folder in config["package-dir"].items():
        assert (ROOT / folder / "py.typed").is_file(), package
    assert "py.typed" in config["package-data"]["*"]


def test_a_source_distribution_has_all_that_its_tests_need(tmp_path: Path) -> None:
    """Built by setuptools itself, from a copy, because it leaves files behind."""
    names = ("LICENSE", "README.md", "MANIFEST.in", "pyproject.toml", *MADE_OF, "src", *ROOMS)
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=skipped)
        else:
            shutil.copy(ROOT / name, tmp_path)
    code = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    (archive,) = (tmp_path / "dist").glob("tierwise-*.tar.gz")
    with tarfile.open(archive) as files:
        held = {"/".join(Path(name).parts[1:]) for name in files.getnames()}
    wanted = {
        path.relative_to(tmp_path).as_posix()
        for name in names
        for path in (tmp_path / name, *(tmp_path / name).rglob("*"))
        if path.is_file() and ".egg-info" not in str(path)
    }
    assert wanted <= held


def test_compression_is_no_package_of_the_standard_library() -> None:
    """Python 3.14 has a package ``compression``; a folder without ``__init__`` yields to it."""
    for folder in ("compression", "tests/compression"):
        assert (ROOT / folder).is_dir()
        assert not (ROOT / folder / "__init__.py").exists()


# --- What is public -------------------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    assert sorted(tierwise.__all__) == PUBLIC == sorted(tierwise._EXPORTS)
    assert set(PUBLIC) <= set(dir(tierwise))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        tierwise.Nothing  # noqa: B018


def test_the_types_of_public_names_are_known_to_checkers() -> None:
    """What `_EXPORTS` says at run time, the block for type checkers says too."""
    tree = ast.parse(Path(tierwise.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        alias.asname: node.module
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    }
    assert declared == tierwise._EXPORTS


def test_every_public_name_can_be_had() -> None:
    newest = find_spec("langchain_core.decisions") is not None  # since langchain-core 1.8
    names = [name for name in PUBLIC if newest or name != "TierwiseDecisionModel"]
    code = f"import tierwise; print([getattr(tierwise, name).__name__ for name in {names}])"
    assert ast.literal_eval(run_python(code)) == names


def test_without_torch_its_names_name_the_cure_and_the_others_are_there() -> None:
    code = """
import pydoc, sys
sys.modules["torch"] = None  # as if it were not installed
from tierwise import *
import tierwise
print(Budget.__name__, len(pydoc.render_doc(tierwise)) > 0)
for name in ("ModelAdapter", "adapt_model", "run_optimization"):
    try:
        getattr(tierwise, name)
    except tierwise.TierwiseError as error:
        print(isinstance(error, ImportError), error)
"""
    first, *rest = run_python(code).splitlines()
    assert first == "Budget True"
    assert rest == [
        f"True {name} needs the package 'torch': pip install 'tierwise[compress]'"
        for name in ("ModelAdapter", "adapt_model", "run_optimization")
    ]


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tierwise.__version__ == project["version"]


def test_importing_tierwise_loads_nothing_heavy() -> None:
    code = "import json, sys, tierwise; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in json.loads(run_python(code))}
    assert loaded.isdisjoint(HEAVY)
    own = [name for name in json.loads(run_python(code)) if name.startswith("tierwise")]
    assert own == ["tierwise"]


# --- Errors ---------------------------------------------------------------------------------------


def drawn_tree(drawing: str) -> dict[str, str | None]:
    """Each class of a tree drawn with lines, with its parent."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in drawing.splitlines():
        name = line.lstrip("│├└─ ").split(" ")[0]
        if not name.endswith("Error"):
            continue
        depth = (len(line) - len(line.lstrip("│├└─ "))) // 4
        parents[name] = path[depth - 1] if depth else None
        path[depth:] = [name]
    return parents


def test_the_error_tree_is_drawn_as_it_is() -> None:
    classes = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}
    real = {
        name: None if cls.__base__ is Exception else cls.__bases__[0].__name__
        for name, cls in classes.items()
    }
    assert drawn_tree(errors.__doc__ or "") == real
    assert [name for name, parent in real.items() if parent is None] == ["TierwiseError"]
    assert all(issubclass(cls, errors.TierwiseError) for cls in classes.values())


def test_a_drawn_tree_is_read_rightly() -> None:
    drawing = "AError\n├── BError  about\n│   └── CError\n└── DError\n    └── EError"
    assert drawn_tree(drawing) == {
        "AError": None,
        "BError": "AError",
        "CError": "BError",
        "DError": "AError",
        "EError": "DError",
    }


def test_errors_are_defined_in_one_file() -> None:
    elsewhere = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for room, path in modules(ROOT)
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and node.name.endswith("Error")
        and not node.name.startswith("_")
    ]
    assert elsewhere == []


# --- Files ----------------------------------------------------------------------------------------


def test_modules_are_short() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for _, path in modules(ROOT)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) >= LONGEST_MODULE
    }
    assert {name: lines for name, lines in long.items() if name not in DATA_TABLES} == {}
    assert set(long) == DATA_TABLES  # no exception that is not needed


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX", "NotImplementedError"])
def test_nothing_is_left_unfinished(word: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for _, path in modules(ROOT)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word in line
    ]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for _, path in modules(ROOT)
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_modules_of_runtime_load_no_langchain_and_no_torch() -> None:
    names = [f"tierwise.runtime.{path.stem}" for room, path in modules(ROOT) if room == "runtime"]
    code = f"""
import importlib, json, sys
for name in {[name.removesuffix(".__init__") for name in names]}:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""
    loaded = {name.split(".")[0] for name in json.loads(run_python(code))}
    assert loaded.isdisjoint({"torch", "transformers", "langchain", "langchain_core"})
