"""A tier on another machine, as a family keeps it."""

from __future__ import annotations

import hashlib

from pydantic import Field

from tierwise.runtime.record import Record


class RemoteTier(Record):
    """A tier on another machine: a model behind an OpenAI-compatible server.

    Args:
        name: As of `Tier`.
        url: Of the API, such as "http://10.0.0.7:8080/v1".
        model: That the server is asked for.
        api_key_env: Environment variable that holds its key; the key itself is never written
            down. Empty where the server wants none.
        context_tokens: Longest prompt and reply together.
        timeout_s: Without a word from the server for so long, the call fails.
        success: Its chance of being right on a usual call, as far as you know; a calibration that
            asked it knows better. None: as the best tier of the family.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    url: str = Field(pattern=r"^https?://[^\s]+$")
    model: str = Field(min_length=1)
    api_key_env: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    context_tokens: int = Field(default=32_768, gt=0)
    timeout_s: float = Field(default=60.0, gt=0)
    success: float | None = Field(default=None, ge=0, le=1)

    @property
    def sha256(self) -> str:
        """By which its outcomes and its speed are known, as those of a tier with a file by the
        file's hash: here of url and model."""
        return hashlib.sha256(f"{self.url}\0{self.model}".encode()).hexdigest()

    @property
    def taught_tools(self) -> bool:
        """The server has a template of its own; prompts are counted as the longer ones."""
        return False
