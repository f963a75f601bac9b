"""What the newest LangChain brings is not missed until it is asked for."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.modules["langchain_core.decisions"] = None  # as if this langchain-core had none
import tierwise
from tierwise import ChatTierwise
try:
    tierwise.TierwiseDecisionModel
except tierwise.TierwiseError as error:
    print(type(error).__name__, isinstance(error, ImportError), error)
"""


def test_decision_models_name_the_version_that_they_need() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(
        "MissingExtraError True TierwiseDecisionModel needs langchain-core"
    )
    assert "1.8 or newer" in run.stdout and "pip install -U 'langchain>=1.5'" in run.stdout


def test_an_error_that_an_older_langchain_has_not_is_no_loss() -> None:
    code = """
from langchain_core import exceptions
if hasattr(exceptions, "ContextOverflowError"):
    del exceptions.ContextOverflowError
from tierwise import TierwiseError
from tierwise.plugin.langchain_errors import told_to_langchain
from tierwise.runtime.errors import ContextOverflowError
try:
    with told_to_langchain():
        raise ContextOverflowError("too long")
except ContextOverflowError as error:
    print(isinstance(error, exceptions.LangChainException), error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "True too long\n", run.stderr
