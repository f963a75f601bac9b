"""Runs chat templates, which are code from strangers, within bounds.

Jinja's immutable sandbox keeps a template from reaching Python's insides; the meter keeps it
from work without end, and the checks here from making anything huge in a single step.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.exceptions import SecurityError

from tierwise.runtime.errors import UnsupportedModelError
from tierwise.runtime.template_meter import (
    BUILT,
    CONCAT,
    TICK,
    WEIGH,
    Meter,
    check_length,
    metered,
)

_WIDEST = 1_000  # padding
_LARGEST_SOURCE = 1 << 20
_STARTED = datetime.now().time()

_FILTERS = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first"),
    *("float", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "min"),
    *("max", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select"),
    *("selectattr", "sort", "string", "title", "trim", "unique", "upper"),
)
_COMPARING_TESTS = ("==", "eq", "equalto", "!=", "ne", "<", "lt", "<=", "le", ">", "gt", ">=", "ge")


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks, for training, what the model writes; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja as ``transformers`` sets it up for chat templates, with a meter."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            finalize=self._finalize,
        )
        self._meter = Meter()
        self.filters = {name: self._metered(self.filters[name]) for name in _FILTERS}
        self.filters |= {
            "tojson": self._to_json,
            "join": self._metered(self._checked_join(self.filters["join"])),
            "replace": self._metered(self._checked_replace(self.filters["replace"])),
            "indent": self._metered(_checked_indent(self.filters["indent"])),
            CONCAT: self._concat,
            TICK: self._tick,
            WEIGH: self._weigh,
            BUILT: self._meter.built,
        }
        for name in _COMPARING_TESTS:
            self.tests[name] = self._metered(self.tests[name])
        self.tests["in"] = self._metered(self.tests["in"])
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _strftime_now

    def template(self, source: str) -> jinja2.Template:
        """Compiles a template.

        Raises:
            UnsupportedModelError: It is no valid Jinja, or wants to include other files.
        """
        if len(source) > _LARGEST_SOURCE:
            raise UnsupportedModelError(
                f"the model's chat template is broken: it has {len(source):,} characters, of at "
                f"most {_LARGEST_SOURCE:,}"
            )
        self._meter.refill()  # constant expressions are computed now
        try:
            return self.from_string(metered(self.parse(source)))
        except Exception as error:  # sources nested too deeply fail in many ways
            raise UnsupportedModelError(f"the model's chat template is broken: {error}") from error

    def part(self, body: Sequence[jinja2.nodes.Node]) -> jinja2.Template:
        """Compiles a part of a template, which `template` took as a whole."""
        tree = jinja2.nodes.Template(list(body), lineno=1)
        tree.set_environment(self)
        self._meter.refill()
        return self.from_string(metered(tree))

    def run(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Renders with a full meter. Raises whatever the template makes go wrong."""
        self._meter.refill()
        try:
            return template.render(variables)
        finally:
            self._meter.refill()

    # --- What Jinja calls -------------------------------------------------------------------------

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"it may not read the attribute {attribute!r}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in ("**", "*"):
            self._check_product(operator, left, right)
        elif operator == "%" and isinstance(left, str):
            self._check_form(left, right if isinstance(right, tuple) else (right,), r"\d{4}|\*")
        elif operator == "+" and isinstance(left, str | list | tuple):
            length = len(left) + (len(right) if isinstance(right, str | list | tuple) else 0)
            check_length(length, of_list=not isinstance(left, str))
        return self._meter.made(super().call_binop(context, operator, left, right), (left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(obj, "__wrapped__", obj)  # Jinja wraps `str.format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str) and getattr(method, "__name__", "") == "join":
            args = tuple(one if isinstance(one, str) else list(one) for one in args)
        self._meter.charge(1 + sum(map(self._meter.size, args)))
        if isinstance(owner, str):
            self._meter.charge(self._meter.size(owner))
            self._check_method(owner, getattr(method, "__name__", ""), args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, dict):  # of dict() or dict.fromkeys(), which hold what they are given
            return self._meter.built(result)
        return self._meter.made(result, (owner,))

    def _finalize(self, value: Any) -> Any:
        """What ``{{ value }}`` writes."""
        return self._meter.made(value if isinstance(value, str) else str(value))

    def _metered(self, function: Any) -> Callable[..., Any]:
        """A filter or test whose work is charged by the size of what it is given."""

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._meter.charge(1 + sum(map(self._meter.size, args)))
            return self._meter.made(function(*args, **kwargs), args)

        return counted

    # --- What the changed syntax tree calls -------------------------------------------------------

    @jinja2.pass_context  # or it would be called once, when the template is compiled
    def _tick(self, _context: object, steps: int) -> bool:
        self._meter.charge(steps)
        return True

    def _weigh(self, value: Any) -> Any:
        self._meter.charge(1 + self._meter.size(value))
        return self._meter.made(value)

    def _concat(self, *values: Any) -> str:
        texts = [str(value) for value in values]
        check_length(sum(map(len, texts)))
        return str(self._meter.made("".join(texts)))

    # --- What must not grow without measure -------------------------------------------------------

    def _check_product(self, operator: str, left: Any, right: Any) -> None:
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(times, int):
                check_length(len(value) * times, of_list=not isinstance(value, str))
        if isinstance(left, int) and isinstance(right, int):
            each = left.bit_length()
            bits = each * right if operator == "**" else each + right.bit_length()
            if bits > 1024:
                raise SecurityError("it makes numbers of more than 1,024 bits")

    def _check_form(self, form: str, values: Iterable[Any], wide: str) -> None:
        """A form (``%`` or ``format``): no wide padding, no value many times over."""
        if re.search(wide, form):
            raise SecurityError("it pads a text without measure")
        longest = max((len(str(value)) for value in values), default=0)
        check_length((form.count("%") + form.count("{")) * longest)

    def _check_method(
        self, owner: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        values = (*args, *kwargs.values())
        if name in ("expandtabs", "translate"):
            raise SecurityError(f"it calls {name}, which makes texts longer without measure")
        if name in ("center", "ljust", "rjust", "zfill"):
            if any(isinstance(value, int) and value > _WIDEST for value in values):
                raise SecurityError("it pads a text without measure")
        elif name in ("format", "format_map"):
            self._check_form(owner, values, r"\d{4}|\{[^{}]*\{")
        elif name == "replace" and len(args) >= 2:
            self._check_replace(owner, args[0], args[1])
        elif name == "join" and args:
            self._check_join(args[0], owner)

    def _check_replace(self, text: str, old: Any, new: Any) -> None:
        if isinstance(old, str) and isinstance(new, str):
            check_length(text.count(old) * len(new))

    def _check_join(self, parts: Iterable[Any], between: str) -> None:
        check_length(sum(len(str(part)) + len(between) for part in parts))

    def _checked_join(self, join: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(join)
        def checked(
            eval_ctx: Any, value: Any, d: str = "", attribute: str | int | None = None
        ) -> Any:
            parts = list(value)
            if attribute is None:
                self._check_join(parts, str(d))
            return join(eval_ctx, parts, d, attribute)

        return checked

    def _checked_replace(self, replace: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(replace)
        def checked(eval_ctx: Any, s: Any, old: str, new: str, count: int | None = None) -> Any:
            self._check_replace(str(s), old, new)
            return replace(eval_ctx, s, old, new, count)

        return checked

    def _to_json(self, value: Any, indent: int | None = None, **_: Any) -> str:
        # Jinja's own escapes <, > and & for HTML, which no model was trained on.
        if indent is not None and not 0 <= int(indent) <= 16:
            raise SecurityError(f"it asks for JSON indented by {indent}")
        self._meter.charge(1 + self._meter.size(value))
        return str(self._meter.made(json.dumps(value, ensure_ascii=False, indent=indent)))


def _checked_indent(indent: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(indent)
    def checked(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
        if (len(width) if isinstance(width, str) else width) > 64:
            raise SecurityError(f"it indents by {width}")
        return indent(s, width, first, blank)

    return checked


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    """The day is today's; the time of day stays what it was when the process began, lest every
    prompt that tells it differ from the one before, and nothing of it be found in the cache."""
    if len(form) > 100:
        raise SecurityError("it asks for a date in a form of more than 100 characters")
    return datetime.combine(date.today(), _STARTED).strftime(form)
