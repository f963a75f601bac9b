"""``with_structured_output``: a model and a parser that give an object for a reply."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from tierwise.plugin.messages import to_schema
from tierwise.runtime.errors import ConfigError

StructuredMethod = Literal["json_schema", "function_calling", "json_mode"]


def structured(
    model: BaseChatModel, schema: Any, method: StructuredMethod, *, include_raw: bool
) -> Runnable[Any, Any]:
    """The model, followed by a parser.

    Args:
        schema: A pydantic class, a TypedDict, or a JSON schema.
        method: As in ``ChatTierwise.with_structured_output``.
        include_raw: Give a dictionary of raw message, parsed object and parsing error.

    Raises:
        ConfigError: The method is unknown, or the schema none.
    """
    if schema is None:
        raise ConfigError(
            "there is no schema; give a pydantic class, a TypedDict, or a JSON schema"
        )
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    note = {"kwargs": {"method": method}, "schema": schema}
    parser: Runnable[Any, Any]
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        bound = model.bind_tools([schema], tool_choice=name, ls_structured_output_format=note)
        if is_class:
            parser = PydanticToolsParser(tools=[schema], first_tool_only=True)
        else:
            parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    elif method in ("json_schema", "json_mode"):
        shape = {"type": "json_object"} if method == "json_mode" else schema
        to_schema(shape)  # raises what the first call would
        bound = model.bind(response_format=shape, ls_structured_output_format=note)
        parser = WholePydanticParser(pydantic_object=schema) if is_class else WholeJsonParser()
    else:
        raise ConfigError(
            f"unknown method {method!r}; use json_schema, function_calling or json_mode"
        )
    if not include_raw:
        return bound | parser
    attempt = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failure = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | attempt.with_fallbacks([failure], exception_key="parsing_error")


class WholeJsonParser(JsonOutputParser):
    """Refuses JSON that was cut off, where LangChain's own would close it and go on as if it
    were whole. What is streamed may be partial."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if partial:
            return super().parse_result(result, partial=True)
        text = result[0].text
        try:
            return json.loads(text)
        except ValueError as error:
            raise OutputParserException(
                f"the reply is no whole JSON ({error}): {text!r}. If it was cut off, allow more "
                "max_tokens.",
                llm_output=text,
            ) from error


class WholePydanticParser(PydanticOutputParser[Any], WholeJsonParser):
    """The same, for a pydantic class."""
