"""`--where`: a condition on columns, such as `amount > 100 and region in ("EU", "UK")`.

It is written as in Python, and read as a syntax tree: nothing of it is ever run.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from marctl.core.errors import UserError

COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
EXAMPLE = 'amount > 100 and region in ("EU", "UK") and note is not None'


class BadCondition(UserError):
    """A condition that cannot be read, or that does not fit the columns."""


class Condition:
    """A condition that has been read. `columns` are those that it names."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.columns: set[str] = set()
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            self.expression = self._truth(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
            raise BadCondition(f"--where {text!r}: {reason(err)}; expected a condition such as {EXAMPLE}") from err
        if not self.columns:
            raise BadCondition(f"--where {text!r} names no column; expected a condition such as {EXAMPLE}")

    def mask(self, columns: Mapping[str, pa.Array]) -> np.ndarray[Any, Any]:
        """bool, (rows,): whether each row meets it; what is unknown, because a value is null, does not."""
        table = pa.table({name: columns[name] for name in sorted(self.columns)})
        numbered = table.append_column("\0row", pa.array(np.arange(len(table))))
        try:
            kept = numbered.filter(self.expression)["\0row"].to_numpy()
        except (pa.ArrowException, pa.ArrowKeyError) as err:
            types = ", ".join(f"{field.name} is {field.type}" for field in table.schema)
            raise BadCondition(f"--where {self.text!r} does not fit the columns ({types}): {err}") from err
        found = np.zeros(len(table), bool)
        found[kept] = True
        return found

    def _truth(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            joined = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return reduce(joined, map(self._truth, node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._truth(node.operand)
        if isinstance(node, ast.Compare):
            values = [node.left, *node.comparators]
            pairs = zip(values, node.ops, values[1:], strict=False)
            return reduce(operator.and_, [self._comparison(left, op, right) for left, op, right in pairs])
        if isinstance(node, ast.Name):
            return self._column(node) == True  # noqa: E712  # an expression, not a comparison
        raise ValueError(f"`{ast.unparse(node)}` is no comparison")

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(op, ast.In | ast.NotIn):
            found = self._column(left).isin(literal(right, list | tuple | set))
            return ~found if isinstance(op, ast.NotIn) else found
        if isinstance(op, ast.Is | ast.IsNot):
            if literal(right, type(None)) is not None:
                raise ValueError("`is` compares with None alone")
            found = self._column(left).is_null()
            return ~found if isinstance(op, ast.IsNot) else found
        return COMPARISONS[type(op)](self._value(left), self._value(right))

    def _value(self, node: ast.expr) -> Any:
        return self._column(node) if isinstance(node, ast.Name) else pc.scalar(literal(node, int | float | str | bool))

    def _column(self, node: ast.expr) -> Any:
        if not isinstance(node, ast.Name):
            raise ValueError(f"`{ast.unparse(node)}` is no column's name")
        self.columns.add(node.id)
        return pc.field(node.id)


def literal(node: ast.expr, kind: Any) -> Any:
    """Raises ValueError."""
    value = ast.literal_eval(node)
    if not isinstance(value, kind):
        raise ValueError(f"`{ast.unparse(node)}` does not stand where it may")
    return list(value) if isinstance(value, list | tuple | set) else value


def reason(err: Exception) -> str:
    return (err.msg if isinstance(err, SyntaxError) else str(err)) or type(err).__name__
