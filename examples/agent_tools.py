"""Four real tools for the example agent: a calculator, units, a SQLite database, files."""

from __future__ import annotations

import ast
import operator
import sqlite3
from collections.abc import Callable
from pathlib import Path

from langchain_core.tools import BaseTool, tool

_OPERATIONS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
_METERS_OR_GRAMS = {
    "mile": 1609.344,
    "kilometer": 1000.0,
    "meter": 1.0,
    "foot": 0.3048,
    "inch": 0.0254,
    "kilogram": 1000.0,
    "pound": 453.59237,
    "gram": 1.0,
}
_ORDERS = [
    ("Dana Moss", "lamp", 2),
    ("Ivo Lang", "desk", 1),
    ("Mira Stone", "chair", 6),
]
_FILES = {
    "march.txt": "The invoice of the printer came in March.",
    "plan.md": "The budget for next year is not final.",
    "recipe.txt": "Onions, carrots, and a little salt.",
}


def make_tools(folder: Path) -> list[BaseTool]:
    """The tools, working on a database and files that are made in ``folder``."""
    database = folder / "shop.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("create table orders (customer text, product text, pieces integer)")
        connection.executemany("insert into orders values (?, ?, ?)", _ORDERS)
    connection.close()
    documents = folder / "documents"
    documents.mkdir()
    for name, text in _FILES.items():
        (documents / name).write_text(text, encoding="utf-8")

    @tool
    def calculate(expression: str) -> str:
        """Work out an arithmetic expression such as 3 * (4 + 5)."""
        try:
            return f"{_evaluate(ast.parse(expression, mode='eval').body):.12g}"
        except (SyntaxError, ValueError, ArithmeticError, RecursionError) as error:
            return f"cannot work out {expression!r}: {error}"

    @tool
    def convert_units(value: float, from_unit: str, to_unit: str) -> str:
        """Convert a length or weight from one unit to another, such as miles to kilometers."""
        try:
            factor = _factor(from_unit) / _factor(to_unit)
        except KeyError as error:
            return f"unknown unit {error}"
        return f"{value * factor:.4g} {to_unit}"

    @tool
    def find_orders(customer: str) -> str:
        """Look up in the shop database what a customer ordered, by the customer's name."""
        query = "select pieces, product from orders where customer like ?"
        connection = sqlite3.connect(database)
        rows = connection.execute(query, (f"%{customer}%",)).fetchall()
        connection.close()
        return ", ".join(f"{pieces} {product}" for pieces, product in rows) or "no orders"

    @tool
    def search_files(word: str) -> str:
        """Find the files that contain a word."""
        found = [
            path.name
            for path in sorted(documents.iterdir())
            if word.lower() in path.read_text(encoding="utf-8").lower()
        ]
        return ", ".join(found) or f"no file contains {word!r}"

    return [calculate, convert_units, find_orders, search_files]


def _evaluate(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_evaluate(node.operand))
    raise ValueError("only numbers and + - * / are known")


def _factor(unit: str) -> float:
    name = unit.strip().lower()
    irregular = {"feet": "foot", "inches": "inch"}
    return _METERS_OR_GRAMS[irregular.get(name, name.removesuffix("s"))]
