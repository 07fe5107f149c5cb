"""Axis rules: what the text of a call says about mixing the rows of a batch. Axis 0 is the batch, everywhere.

A function that works along an axis must have that axis written out, and it may not be 0; shapes begin with the batch;
einsum keeps one letter for the batch at the front. What shows only at run time (a negative axis that happens to be
the first, a product of a matrix with its own transpose) is left to the independence probe. Standard library only.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

from datasites.enclave import allowed_names

#: rule, reason, remedy
Problem = tuple[str, str, str]

_MIXES = "works across the rows of the batch (axis 0)"


def literal_int(node: ast.expr | None) -> int | None:
    """Return the integer that an expression of integer literals stands for, else None."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = literal_int(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.BinOp):
        left, right = literal_int(node.left), literal_int(node.right)
        if left is None or right is None:
            return None
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Pow) and 0 <= right <= 64 and abs(left) <= 1024:
            return int(left**right)
    return None


def axes(node: ast.expr) -> list[int] | None:
    """Return axis or axes written out as a literal, else None."""
    one = literal_int(node)
    if one is not None:
        return [one]
    if isinstance(node, ast.Tuple | ast.List) and node.elts:
        found = [literal_int(element) for element in node.elts]
        return None if None in found else [value for value in found if value is not None]
    return None


def keyword(call: ast.Call, *names: str) -> ast.expr | None:
    """Return the value given for the first of `names` that the call has as a keyword."""
    return next((item.value for name in names for item in call.keywords if item.arg == name), None)


def check_call(
    name: str, call: ast.Call, *, method: bool, receiver_has_rows: bool, has_rows: Callable[[ast.expr], bool]
) -> Problem | None:
    """Return what is wrong with a call of tensor function `name`, as `x.name(...)` (method) or `torch.name(x, ...)`."""
    arguments = call.args if method else call.args[1:]
    rows = (
        receiver_has_rows if method else any(map(has_rows, call.args)) or any(has_rows(k.value) for k in call.keywords)
    )
    if name in allowed_names.SWAPS:
        return _swap(name, call, arguments)
    if name in allowed_names.SHAPES and rows and not name.startswith("new_"):
        return _shape(name, arguments)
    if name in allowed_names.ALONG_AXIS:
        return _along(name, call, arguments)
    if name == "unsqueeze" and rows and axes(_axis(call, arguments, 0) or ast.Constant(None)) in (None, [0]):
        return ("rows", "unsqueeze: the axis must be written out and not be 0", "write .unsqueeze(1)")
    if name == "where" and not method and len(call.args) + len(call.keywords) != 3:
        return ("rows", "torch.where with only a condition counts rows", "give all three arguments")
    if name == "einsum":
        return _einsum(call)
    if name in ("triu", "tril") and rows:
        return ("rows", f"{name} depends on the position of a row in the batch", "use it on a mask made by torch.ones")
    if name == "repeat" and rows and (not arguments or literal_int(arguments[0]) != 1):
        return ("rows", "repeat must not repeat the batch", "write .repeat(1, ...)")
    return None


def check_layer(name: str, call: ast.Call) -> Problem | None:
    """Return what is wrong with making layer `name`."""
    if name not in allowed_names.LAYER_AXIS:
        return None
    node = _axis(call, call.args, allowed_names.LAYER_AXIS[name], "start_dim" if name == "Flatten" else "dim")
    if node is None and name in allowed_names.LAYER_AXIS_DEFAULTS:
        return None
    found = axes(node) if node is not None else None
    if found is None or 0 in found:
        return ("rows", f"nn.{name}: the axis must be written out and not be 0", f"write nn.{name}(dim=-1)")
    return None


def check_loss(name: str, call: ast.Call) -> Problem | None:
    """Check that a loss gives one number for each row."""
    reduction = keyword(call, "reduction")
    if isinstance(reduction, ast.Constant) and reduction.value == "none":
        return None
    return ("rows", f"F.{name} takes the mean over the batch", 'write reduction="none"')


def _axis(call: ast.Call, arguments: list[ast.expr], position: int, name: str = "dim") -> ast.expr | None:
    named = keyword(call, name, "dim", "axis", "dims")
    if named is not None:
        return named
    return arguments[position] if len(arguments) > position else None


def _along(name: str, call: ast.Call, arguments: list[ast.expr]) -> Problem | None:
    node = _axis(call, arguments, allowed_names.ALONG_AXIS[name], "start_dim" if name == "flatten" else "dim")
    if node is None:
        if name in allowed_names.SAFE_DEFAULT_AXIS:
            return None
        if name in ("max", "min"):
            return ("rows", f"{name} without an axis {_MIXES}", f"write dim=1, or torch.{name}imum(a, b)")
        return ("rows", f"{name} without an axis {_MIXES}", f"write the axis, as in {name}(..., dim=1)")
    found = axes(node)
    if found is None:
        remedy = f"write dim=1, or torch.{name}imum(a, b)" if name in ("max", "min") else "write a number, as in dim=1"
        return ("rows", f"{name}: the axis is not written out, so it can't be seen that it is not 0", remedy)
    if 0 in found:
        return ("rows", f"{name} with axis 0 {_MIXES}", "use another axis: axis 0 is the batch")
    return None


def _swap(name: str, call: ast.Call, arguments: list[ast.expr]) -> Problem | None:
    given = [*arguments, *(item.value for item in call.keywords if item.arg != "input")]
    found = [axes(node) for node in given]
    if not found or any(part is None for part in found):
        return ("rows", f"{name}: the axes are not written out", "write numbers, as in .transpose(1, 2)")
    flat = [axis for part in found if part is not None for axis in part]
    if name == "permute":
        if flat[0] != 0:
            return ("rows", "permute moves the batch away from axis 0", "begin with 0, as in .permute(0, 2, 1)")
        return None
    if 0 in flat:
        return ("rows", f"{name} with axis 0 moves the batch", "leave axis 0 where it is")
    return None


def _shape(name: str, arguments: list[ast.expr]) -> Problem | None:
    first = arguments[0] if arguments else None
    if isinstance(first, ast.Tuple | ast.List) and first.elts:
        first = first.elts[0]
    value = literal_int(first)
    if value is not None and value != -1:
        return ("rows", f"{name} gives the batch a fixed size", f"write .{name}(x.shape[0], ...)")
    return None


def _einsum(call: ast.Call) -> Problem | None:
    remedy = 'write it as in torch.einsum("bij,bjk->bik", x, y): one letter for the batch, first everywhere'
    text = call.args[0] if call.args else None
    if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
        return ("rows", "einsum: the equation is not written out", remedy)
    inputs, arrow, output = text.value.replace(" ", "").partition("->")
    parts = [*inputs.split(","), output]
    letter = output[:1]
    if not arrow or not letter.isalpha() or any(not p.startswith(letter) or p.count(letter) != 1 for p in parts):
        return ("rows", f"einsum {text.value!r} does not keep the rows of the batch apart", remedy)
    return None
