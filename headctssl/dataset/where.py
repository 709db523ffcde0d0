"""Where: a small, safe language that picks cases by their columns: `kvp >= 100 and sex == 'F'`.

Nothing of an expression is ever executed as Python: it is parsed, every part of it is checked against a
short list, and the rest is an error that says where.
"""

from __future__ import annotations

import ast
import io
import math
import operator
import tokenize
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from headctssl.errors import UsageError, unknown_name

__all__ = ["Where", "parse_where"]

EXAMPLE = "kvp >= 100 and slice_thickness_mm <= 2.5 and not study_description contains 'neck'"
LONGEST = 4000
"""Characters of an expression: more is a mistake."""

DEEPEST = 50
"""Levels of parentheses and `not`: far more than people write, far fewer than Python's stack holds."""

Truth = bool | None  # None = it cannot be said, for a cell is empty
_Test = Callable[[Mapping[str, str]], Truth]
_ORDER: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}


@dataclass(frozen=True)
class Where:
    """A condition on the row of a case."""

    text: str  # as it was written
    columns: tuple[str, ...]  # every column it names, in the order of the text
    _test: _Test = field(repr=False, compare=False)

    def matches(self, row: Mapping[str, str]) -> bool:
        """Whether a case is picked: whether the expression is true of it, not merely undecided.

        Args:
            row: cells by column; '' or a missing column = unknown.
        """
        return self._test(row) is True

    def told(self, row: Mapping[str, str]) -> str:
        """Why a case is not picked: the expression, and the cells that it looked at."""
        cells = (f"{column} is {_cell(row, column) or 'unknown'}" for column in self.columns)
        return f"It does not satisfy --where {self.text}: {', '.join(cells)}."

    def check(self, known: Iterable[str]) -> None:
        """Raise for a column that no case has.

        Args:
            known: the columns there are.

        Raises:
            UsageError: the first unknown column, with the known ones.
        """
        names = list(known)
        for column in self.columns:
            if column not in names:
                raise unknown_name("column in --where", column, names)


def parse_where(text: str) -> Where:
    """Read an expression over case columns.

    A condition is `COLUMN == VALUE`, `!=`, `<`, `<=`, `>`, `>=`, `COLUMN in (VALUE, ...)`,
    `COLUMN not in (...)`, `COLUMN contains 'text'`, `COLUMN is known` or `COLUMN is unknown`; conditions
    are joined by `and`, `or`, `not` and parentheses. A value that is a number compares as a number: a
    cell that is no number counts as unknown there. A value in quotes compares as text, exactly;
    `contains` ignores upper and lower case. A comparison with an unknown cell is neither true nor false,
    nor is its `not`: such a case is not picked. A column whose name is no plain word is written
    `column('any name')`.

    Raises:
        UsageError: the text is no such expression; the position is named.
    """
    flat = " ".join(text.splitlines()).replace("\t", " ")
    if not flat.strip() or len(flat) > LONGEST:
        raise _error(flat, 0, f"an expression of 1 to {LONGEST} characters")
    reader = _Reader(flat)
    test = reader.condition(reader.parse())
    return Where(text, tuple(reader.columns), test)


def _error(text: str, position: int, expected: str) -> UsageError:
    start = max(0, position - 20)
    near = f"{'...' if start else ''}{text[start:position]} >>> {text[position : position + 30]}".strip()
    return UsageError(
        f"--where cannot be read at character {position + 1}.",
        got=near or "nothing",
        expected=expected,
        do=f'For example: --where "{EXAMPLE}"',
    )


class _Reader:
    """Turns the syntax tree of one expression into tests, and refuses what is not in the language."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.columns: dict[str, None] = {}  # a set that keeps the order

    def fail(self, node: ast.AST, expected: str) -> UsageError:
        offset = getattr(node, "col_offset", 0)  # in bytes of UTF-8
        return _error(self.text, len(self.text.encode()[:offset].decode(errors="ignore")), expected)

    def parse(self) -> ast.expr:
        """The syntax tree; `contains` becomes the operator @, which has no other use here."""
        text = self.text
        try:
            for token in tokenize.generate_tokens(io.StringIO(text.lstrip()).readline):
                start = token.start[1] + len(text) - len(text.lstrip())
                if token.type == tokenize.OP and token.string == "@":
                    raise _error(text, start, "conditions joined by and, or, not")
                if token.type == tokenize.NAME and token.string == "contains":
                    text = f"{text[:start]}@{' ' * 7}{text[start + 8 :]}"
            # Blanks in front would be indentation; inside parentheses they are not.
            stripped = text.lstrip()
            tree = ast.parse(stripped, mode="eval").body
        except SyntaxError as error:
            offset = error.offset - 1 if error.offset else len(text)  # none is given for an early end
            position = offset + len(text) - len(text.lstrip())
            hint = "conditions joined by and, or, not"
            if "=" in self.text.replace("==", "").replace("!=", "").replace("<=", "").replace(">=", ""):
                hint += "; two values are compared with =="
            raise _error(self.text, min(position, len(self.text)), hint) from None
        except (tokenize.TokenError, ValueError, RecursionError, MemoryError):
            raise _error(self.text, len(self.text), "closed parentheses and quotes, not nested too deep") from None
        shift = len(text) - len(text.lstrip())
        for node in ast.walk(tree):
            if hasattr(node, "col_offset"):
                node.col_offset += shift
        return tree

    def condition(self, node: ast.expr, depth: int = 0) -> _Test:
        """What is true or false of a row."""
        if depth > DEEPEST:
            raise self.fail(node, f"at most {DEEPEST} levels of parentheses and not")
        if isinstance(node, ast.BoolOp):
            tests = [self.condition(value, depth + 1) for value in node.values]
            return _all(tests) if isinstance(node.op, ast.And) else _any(tests)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _opposite(self.condition(node.operand, depth + 1))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return _all([self.comparison(left, op, right) for left, op, right in pairs])
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return self.containing(node)
        raise self.fail(node, "a condition such as kvp == 120 or sex == 'F'")

    def containing(self, node: ast.BinOp) -> _Test:
        column, value = self.column(node.left), self.value(node.right)
        if not isinstance(value, str):
            raise self.fail(node.right, "text in quotes after contains")
        needle = value.casefold()
        return lambda row: (needle in cell.casefold()) if (cell := _cell(row, column)) else None

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Test:
        """One operator between a column and a value, on whichever side the column is."""
        if isinstance(op, ast.Is | ast.IsNot):
            return self.knowledge(left, op, right)
        if isinstance(op, ast.In | ast.NotIn):
            test = self.membership(left, right)
            return _opposite(test) if isinstance(op, ast.NotIn) else test
        kind = type(op)
        if isinstance(left, ast.Constant | ast.UnaryOp):
            left, right, kind = right, left, _MIRRORED[kind]
        column, value = self.column(left), self.value(right)
        if kind in _ORDER:
            if isinstance(value, str):
                raise self.fail(right, "a number without quotes beside <, <=, > and >=")
            return _ordered(column, _ORDER[kind], value)
        test = _equal(column, value)
        return _opposite(test) if kind is ast.NotEq else test

    def knowledge(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Test:
        column = self.column(left)
        if not isinstance(right, ast.Name) or right.id not in ("known", "unknown"):
            raise self.fail(right, "known or unknown after is")
        wanted = (right.id == "known") == isinstance(op, ast.Is)
        return lambda row: bool(_cell(row, column)) == wanted

    def membership(self, left: ast.expr, right: ast.expr) -> _Test:
        column = self.column(left)
        # One value in parentheses is no tuple in Python; here it is a list of one.
        values = right.elts if isinstance(right, ast.Tuple | ast.List | ast.Set) else [right]
        if not values:
            raise self.fail(right, "at least one value between the parentheses")
        return _any([_equal(column, self.value(value)) for value in values])

    def column(self, node: ast.expr) -> str:
        name = ""
        if isinstance(node, ast.Name):
            name = node.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "column":
            arguments = node.args
            if len(arguments) == 1 and not node.keywords and isinstance(arguments[0], ast.Constant):
                name = arguments[0].value if isinstance(arguments[0].value, str) else ""
        if not name:
            raise self.fail(node, "the name of a column, or column('any name')")
        self.columns[name] = None
        return name

    def value(self, node: ast.expr) -> float | str:
        sign = 1.0
        inner = node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, inner = (-1.0 if isinstance(node.op, ast.USub) else 1.0), node.operand
        found = inner.value if isinstance(inner, ast.Constant) else None
        if isinstance(found, str) and inner is node:
            return found
        if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found):
            return sign * float(found)
        raise self.fail(node, "a number, or text in quotes")


def _cell(row: Mapping[str, str], column: str) -> str:
    return str(row.get(column, "")).strip()


def _number(cell: str) -> float | None:
    """A cell as a number, None when it is none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _ordered(column: str, compare: Callable[[float, float], bool], value: float) -> _Test:
    def test(row: Mapping[str, str]) -> Truth:
        number = _number(_cell(row, column))
        return None if number is None else compare(number, value)

    return test


def _equal(column: str, value: float | str) -> _Test:
    if not isinstance(value, str):
        return _ordered(column, operator.eq, value)
    return lambda row: (cell == value) if (cell := _cell(row, column)) else None


def _opposite(test: _Test) -> _Test:
    def opposite(row: Mapping[str, str]) -> Truth:
        truth = test(row)
        return None if truth is None else not truth

    return opposite


def _all(tests: list[_Test]) -> _Test:
    """Kleene's and: one false decides, else one unknown leaves it open."""

    def every(row: Mapping[str, str]) -> Truth:
        truths = [test(row) for test in tests]
        if False in truths:
            return False
        return None if None in truths else True

    return every


def _any(tests: list[_Test]) -> _Test:
    """Kleene's or, by De Morgan."""
    return _opposite(_all([_opposite(test) for test in tests]))
