"""LangChain's own unit tests for chat models, with nothing excused.

Its serialization test skips itself: `langchain_core.load` reads back only the classes on its
own list, so a model outside of it cannot claim to be serializable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from family_factory import TierSpec, make_family
from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests
from tiny_models import write_tiny_gguf

from tierwise import ChatTierwise


class TestChatTierwise(ChatModelUnitTests):
    folder: Path

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def family(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        work = tmp_path_factory.mktemp("standard")
        file = write_tiny_gguf(work / "tiny.gguf")
        cls.folder = make_family(work / "family", [TierSpec("tiny", file)]).folder

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatTierwise

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"family": str(self.folder)}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"TIERWISE_FAMILY": "elsewhere"}, {}, {"family": "elsewhere"}
