"""langchain-openai's model for one call on a remote tier, and messages as its protocol has them."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

from tierwise.runtime.chat import Call, Message
from tierwise.runtime.consent import refusal
from tierwise.runtime.errors import MissingExtraError, RemoteError
from tierwise.runtime.remote_tier import RemoteTier
from tierwise.runtime.template_messages import as_openai


def key_of(tier: RemoteTier) -> str:
    """What the tier's server wants to be told.

    Raises:
        MissingExtraError, RemoteError: As `RemoteClient.stream`.
    """
    try:
        import langchain_openai  # noqa: F401 - whether it is there
    except ImportError as error:
        raise MissingExtraError(
            f"remote tier {tier.name!r} is asked through langchain-openai, which is not installed: "
            "pip install 'tierwise[remote]'"
        ) from error
    if why := refusal(tier):
        raise RemoteError(f"remote tier {tier.name!r}: {why}")
    key = os.environ.get(tier.api_key_env, "") if tier.api_key_env else "none"
    if not key:
        raise RemoteError(
            f"remote tier {tier.name!r} needs its key in the environment variable "
            f"{tier.api_key_env}, which is not set"
        )
    return key


def _limit(tier: RemoteTier, tokens: int | None) -> dict[str, Any]:
    """The longest reply, in the word that the server knows: OpenAI's own models refuse the old one,
    and many other servers do not read the new one."""
    host = urlsplit(tier.url).hostname or ""
    if tokens is None or host.endswith((".openai.com", ".azure.com")):
        return {"max_completion_tokens": tokens}
    return {"extra_body": {"max_tokens": tokens}}


def model_of(tier: RemoteTier, call: Call, http: Any, async_http: Any) -> Any:
    """The model with the call's options and tools, over these connections."""
    from langchain_openai import ChatOpenAI

    timeout = tier.timeout_s if call.timeout_s is None else min(tier.timeout_s, call.timeout_s)
    model: Any = ChatOpenAI(
        model=tier.model,
        base_url=tier.url,
        api_key=key_of(tier),  # type: ignore[arg-type]
        http_client=http,
        http_async_client=async_http,
        timeout=timeout,
        max_retries=0,  # another tier is asked instead
        stream_usage=True,
        temperature=call.sampling.temperature,
        top_p=call.sampling.top_p if call.sampling.temperature else None,
        seed=call.sampling.seed,
        **_limit(tier, call.max_tokens),
        stop_sequences=list(call.stop) or None,
        # Servers have no common word for "on" and "off", and refuse those that they do not know.
        reasoning_effort=None if call.reasoning in ("on", "off") else call.reasoning,
    )
    if call.usable_tools:
        choice = call.tool_choice if call.tool_choice != "auto" else None
        options = {} if choice is None else {"tool_choice": choice}
        tools = [tool.to_openai() for tool in call.usable_tools]
        return model.bind_tools(tools, parallel_tool_calls=call.parallel_tool_calls, **options)
    if call.response_schema is not None:
        schema = {"name": "reply", "schema": dict(call.response_schema)}
        form: dict[str, Any] = {"type": "json_object"}
        if call.response_schema:
            form = {"type": "json_schema", "json_schema": schema}
        return model.bind(response_format=form)
    return model


def as_protocol(message: Message) -> dict[str, Any]:
    """As the protocol has it: arguments of calls are text."""
    out = as_openai(message)
    out.pop("reasoning_content", None)
    for call in out.get("tool_calls", ()):
        function = call["function"]
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return out
