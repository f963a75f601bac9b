"""Templates from strangers: none reaches outside, and none goes on for ever."""

from __future__ import annotations

import resource
import threading
from dataclasses import replace

import pytest
from tiny_models import CHATML, CHATML_TOOLS

from tierwise.runtime.chat import Call, Message, Tool
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import UnsupportedModelError

CALL = Call((Message("system", "Be brief."), Message("user", "Hello")))


def render(source: str, call: Call = CALL) -> str:
    return ChatTemplate(source).render(call)


DOUBLING = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}%s"
ENDLESS = {
    "loops in loops": "{% for i in range(99999) %}" * 5 + "x" + "{% endfor %}" * 5,
    "loops of nothing": "{% for i in range(99999) %}" * 5 + "{% endfor %}" * 5,
    "loops that take nothing": "{% for i in range(99999) %}"
    + "{% for j in range(99999) if false %}{% endfor %}" * 9
    + "{% endfor %}",
    "a loop that calls itself": (
        "{% for i in [[[1, 1], [1, 1]]] * 900 recursive %}{{ loop(range(900)) }}{% endfor %}"
    ),
    "macros in loops": (
        "{% macro f() %}{% for i in range(9999) %}x{% endfor %}{% endmacro %}"
        "{% for i in range(9999) %}{{ f() }}{% endfor %}"
    ),
    "macros that branch": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a text that doubles": DOUBLING % ("'x'", "{% set ns.x = ns.x + ns.x %}", "{{ ns.x }}"),
    "a text that doubles by ~": DOUBLING % ("'x'", "{% set ns.x = ns.x ~ ns.x %}", "{{ ns.x }}"),
    "a block that doubles": DOUBLING
    % ("'x'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}", "{{ ns.x }}"),
    "a text that doubles by %": DOUBLING % ("'x'", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}", ""),
    "a text that doubles by format": DOUBLING
    % ("'x'", "{% set ns.x = '{0}{0}'.format(ns.x) %}", ""),
    "a text that doubles by join": DOUBLING % ("'x'", "{% set ns.x = [ns.x, ns.x] | join %}", ""),
    "a text that doubles by replace": DOUBLING
    % ("'xx'", "{% set ns.x = ns.x.replace('x', 'xx') %}", ""),
    "replace as a filter": DOUBLING % ("'xx'", "{% set ns.x = ns.x | replace('x', 'xx') %}", ""),
    "a list that doubles": DOUBLING % ("[1]", "{% set ns.x = ns.x + ns.x %}", "{{ ns.x }}"),
    "a list in itself": DOUBLING % ("[1]", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x }}"),
    "a list in itself as JSON": DOUBLING
    % ("[1]", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x | tojson }}"),
    "a list in itself through a filter": DOUBLING
    % ("[1]", "{% set ns.x = [ns.x | list, ns.x | list] %}", "{{ ns.x }}"),
    "a list in itself through a slice": DOUBLING
    % ("[1]", "{% set ns.x = [ns.x[:], ns.x[:]] %}", "{{ ns.x }}"),
    "a list in itself through map": DOUBLING
    % ("[1]", "{% set ns.x = ([ns.x, ns.x] | map('list') | list) %}", "{{ ns.x }}"),
    "a tuple in itself as a key": DOUBLING
    % ("(1,)", "{% set ns.x = (ns.x, ns.x) %}", "{{ {ns.x: 1} }}"),
    "a dict in itself": DOUBLING % ("{}", "{% set ns.x = dict(a=ns.x, b=ns.x) %}", "{{ ns.x }}"),
    "a dict in itself by its keys": DOUBLING
    % ("{}", "{% set ns.x = {}.fromkeys([1, 2], ns.x) %}", "{{ ns.x }}"),
    "items in themselves": DOUBLING
    % ("{'a': 1}", "{% set ns.x = {'a': ns.x | items | list, 'b': ns.x} %}", "{{ ns.x }}"),
    "lists that are compared": DOUBLING
    % (
        "[1], y=[1]",
        "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}",
        "{{ ns.x == ns.y }}",
    ),
    "arguments that nest": "{% macro f(n) %}{{ varargs }}{% endmacro %}{{ f(1, 2) }}",
    "a product": "{{ 'x' * 10 ** 10 }}",
    "a product the other way": "{{ 10 ** 10 * 'x' }}",
    "a list times": "{{ [1] * 10 ** 9 }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a number that squares": DOUBLING % ("3", "{% set ns.x = ns.x * ns.x %}", "{{ ns.x }}"),
    "a range": "{{ range(10 ** 9) | list }}",
    "padding": "{{ 'x'.ljust(10 ** 10) }}",
    "zeros": "{{ 'x'.zfill(10 ** 10) }}",
    "padding by %": "{{ '%9999999999d' % 1 }}",
    "padding by % with a star": "{{ '%*d' % (9999999999, 1) }}",
    "padding by format": "{{ '{:>9999999999}'.format(1) }}",
    "padding by format in format": "{{ '{:>{}}'.format(1, 9999999999) }}",
    "padding by a filter": "{{ 'x' | center(10 ** 10) }}",
    "indented text": "{{ 'x\\ny' | indent(10 ** 10) }}",
    "indented JSON": "{{ [[1]] | tojson(indent=10 ** 10) }}",
    "tabs": "{{ ('\t' * 700000).expandtabs(1000) }}",
    "one letter for many": "{{ ('a' * 1000).translate({97: 'b' * 900000}) }}",
    "joined by a long text": "{{ ('b' * 100000).join('a' * 5000) }}",
    "joined without a list": "{{ ('b' * 100000).join('a' * 5000 | map('upper')) }}",
    "lists in a form": "{{ ('{0}' * 1100).format(['x' * 1000000]) }}",
    "a number that grows": DOUBLING % ("3", "{% set ns.x = (2 ** 500) * ns.x %}", "{{ ns.x }}"),
    "text without end": "{{ lipsum(10 ** 9) }}",
    "searches": (
        "{% set x = 'ab' * 3000000 %}{% for i in range(99999) %}{{ 'c' in x }}{% endfor %}"
    ),
    "comparisons": (
        "{% set x = 'a' * 6000000 %}{% set y = 'a' * 6000000 %}"
        "{% for i in range(99999) %}{{ x == y }}{% endfor %}"
    ),
    "slices": (
        "{% set x = 'a' * 6000000 %}{% for i in range(99999) %}{{ x[1:] | length }}{% endfor %}"
    ),
    "splits": (
        "{% set x = 'a ' * 3000000 %}"
        "{% for i in range(99999) %}{{ x.split() | length }}{% endfor %}"
    ),
    "fixed text": "{% for i in range(99999) %}" + "x" * 500_000 + "{% endfor %}",
    "dates": "{{ strftime_now('%Y' * 1000) }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "size": "x" * 2_000_000,
}


@pytest.mark.parametrize("attack", ENDLESS)
def test_a_template_that_wants_too_much_is_refused(attack: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(UnsupportedModelError, match=r"template (refuses|is (refused|broken))"):
        render(ENDLESS[attack])
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 20  # the worst takes two on a free core
    assert after.ru_maxrss - before.ru_maxrss < 600_000  # KiB


def test_the_reason_is_told() -> None:
    with pytest.raises(UnsupportedModelError, match="does not come to an end within 1,000,000"):
        render(ENDLESS["loops in loops"])
    with pytest.raises(UnsupportedModelError, match="a text of length 10,000,000,000"):
        render(ENDLESS["a product"])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ messages.__len__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ messages[0] | attr('__class__') }}",
        "{{ messages['__class__'] }}",
        "{{ namespace.__init__ }}",
        "{{ tojson.__self__ }}{{ ('x').upper.__self__ }}",
    ],
)
def test_an_attribute_of_pythons_own_is_refused(source: str) -> None:
    with pytest.raises(UnsupportedModelError):
        print(render(source))


@pytest.mark.parametrize(
    "source",
    [
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% from 'x' import y %}",
        "{% extends 'x' %}",
        "{% if false %}{% include 'x' %}{% endif %}",
    ],
)
def test_other_files_are_refused_when_the_template_is_read(source: str) -> None:
    with pytest.raises(UnsupportedModelError, match="is broken: it wants to read other files"):
        ChatTemplate(source)


def test_honest_templates_have_room() -> None:
    """Conversations of hundreds of turns, and texts of millions of characters."""
    turns = (Message("user", "Hello"), Message("assistant", "Hi. " * 50)) * 400
    long = replace(CALL, messages=(*CALL.messages, *turns[1:], Message("user", "x" * 3_000_000)))
    tool = Tool("f", "Does. " * 20, {"type": "object", "properties": {"a": {"type": "string"}}})
    for source in (CHATML, CHATML_TOOLS):
        text = render(source, replace(long, tools=(tool,) * 200))
        assert text.count("Hi. Hi.") == 400 * 25 and "x" * 3_000_000 in text


def test_each_rendering_has_a_meter_of_its_own() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{{ i }}{% endfor %}")
    for _ in range(8):
        template.render(CALL)
    failed: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(5):
                template.render(CALL)
        except UnsupportedModelError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_metering_changes_nothing_else() -> None:
    source = (
        "{% set x = [1, 'a', messages[0].role] %}{{ x }}{{ (1, 2) }}{{ {'a': x} }}"
        "{{ 1 ~ none ~ y }}"
        "{% for a, b in [(1, 2), (3, 4)] if a > 1 %}{{ a }}{{ b }}{% endfor %}{{ x[1:] }}"
        "{{ 'b' in ['a', 'b'] }}{{ x == x }}{{ x | join('-') }}{{ '%s=%d' % ('a', 3) }}"
        "{{ '{}+{b}'.format(1, b=2) }}{{ 7 ** 2 * 3 % 5 }}{{ 'ab' * 2 }}{{ 'a\\nb' | indent(2) }}"
        "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller else '' }}{% endmacro %}"
        "{{ f(1) }}{% call f(3) %}!{% endcall %}{{ none }}{{ 1.5 }}{{ true }}"
        "{% set y %}<{{ 1 }}>{% endset %}{{ y | replace('<', '[') }}{{ 'A b' | lower | title }}"
    )
    assert render(source) == (
        "[1, 'a', 'user'](1, 2){'a': [1, 'a', 'user']}1None34['a', 'user']TrueTrue1-a-user"
        "a=31+22abab" + "a\n  b1232!None1.5True[1>A B"
    )
