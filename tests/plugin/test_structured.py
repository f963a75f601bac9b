"""Parsers that take no JSON for whole that was cut off."""

from __future__ import annotations

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.outputs import Generation
from pydantic import BaseModel

from tierwise.plugin.structured import WholeJsonParser, WholePydanticParser


class Trip(BaseModel):
    city: str
    days: int = 1


def test_whole_json_is_parsed() -> None:
    whole = [Generation(text='{"city": "Oslo", "days": 3}')]
    assert WholeJsonParser().parse_result(whole) == {"city": "Oslo", "days": 3}
    assert WholePydanticParser(pydantic_object=Trip).parse_result(whole) == Trip(
        city="Oslo", days=3
    )
    ticks = [Generation(text='{"city": "```json\\n{}\\n```"}')]
    assert WholeJsonParser().parse_result(ticks) == {"city": "```json\n{}\n```"}


@pytest.mark.parametrize("text", ['{"city": "Os', '{"city": "Oslo"', "", "Oslo"])
def test_json_that_was_cut_off_is_refused(text: str) -> None:
    """LangChain's parsers would give a trip to "Os"."""
    for parser in (WholeJsonParser(), WholePydanticParser(pydantic_object=Trip)):
        with pytest.raises(OutputParserException, match="max_tokens") as caught:
            parser.parse_result([Generation(text=text)])
        assert caught.value.llm_output == text


def test_what_is_streamed_may_be_partial() -> None:
    begun = [Generation(text='{"city": "Os')]
    assert WholeJsonParser().parse_result(begun, partial=True) == {"city": "Os"}
    partial = WholePydanticParser(pydantic_object=Trip).parse_result(begun, partial=True)
    assert partial == Trip(city="Os")


def test_json_of_another_shape_is_refused() -> None:
    with pytest.raises(OutputParserException, match="Trip"):
        WholePydanticParser(pydantic_object=Trip).parse_result([Generation(text='{"days": 3}')])
