"""Checks the expressions of a `model.py`: names, attributes, operators, subscripts, comprehensions.

Second of three layers of one checker: `check_calls`, then this, then `check_statements`. An expression of a kind that
is not handled here is refused, so a later Python's new syntax is refused too. Standard library only.
"""

from __future__ import annotations

import ast

from datasites.enclave import allowed_names, check_rows, reserved_names
from datasites.enclave.check_calls import Calls
from datasites.enclave.scope import kind_of

MAX_INTEGER = 2**31

_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult, ast.BitAnd, ast.BitOr,
    ast.USub, ast.UAdd, ast.Not, ast.Invert, ast.And, ast.Or,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn,
)  # fmt: skip
TYPE_NAMES = frozenset({"bool", "dict", "float", "int", "list", "str", "tuple"})


def constant_fits(node: ast.Constant) -> bool:
    """Return whether a literal is of a plain type and not huge."""
    if node.value is None or node.value is Ellipsis or isinstance(node.value, str | float | bool):
        return True
    return isinstance(node.value, int) and abs(node.value) <= MAX_INTEGER


class Expressions(Calls):
    """The rules for expressions."""

    def expression(self, node: ast.expr, *, size: bool = False, called: bool = False) -> None:
        """size: the batch size may stand here, because it goes into a shape or a name. called: as `node(...)`."""
        if self.flow.is_batch_size(node):
            if not size:
                self.say(node, "batch-size", "the number of rows is used as a number: a loss that uses it depends on "
                         "the other rows",
                         "use x.shape[0] only as the first size in view, reshape, expand or zeros")  # fmt: skip
            self._within_shape(node)
            return
        handler = getattr(self, f"_see_{type(node).__name__}", None)
        if handler is None:
            name = type(node).__name__
            remedy = {
                "Lambda": "define a function at module level",
                "NamedExpr": "assign on a line of its own",
                "GeneratorExp": "use a list",
            }.get(name, "leave it out")
            self.say(node, "expression", f"{name} is not an allowed kind of expression", remedy)
            return
        if isinstance(node, ast.Tuple | ast.List | ast.Starred | ast.BinOp):
            handler(node, size)
        elif isinstance(node, ast.Name | ast.Attribute):
            handler(node, called)
        else:
            handler(node)

    def _within_shape(self, node: ast.expr) -> None:
        """Check what a shape or size is taken of."""
        if isinstance(node, ast.Subscript):
            self._within_shape(node.value)
            self.expression(node.slice)
        elif isinstance(node, ast.Attribute):
            self.expression(node.value)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                self.expression(node.func.value)
            for argument in [*node.args, *(item.value for item in node.keywords)]:
                self.expression(argument)
                if isinstance(node.func, ast.Attribute):
                    self.public(argument, "the number of an axis")

    def operator(self, operator: ast.AST, node: ast.AST) -> None:
        """Check an operator of `node`."""
        if not isinstance(operator, _OPERATORS):
            self.say(node, "operator", f"{type(operator).__name__} is not an allowed operator",
                     "write it differently")  # fmt: skip

    def _see_Constant(self, node: ast.Constant) -> None:
        if not constant_fits(node):
            self.say(
                node,
                "constant",
                "a literal of an unsupported type, or a number that is too large",
                "use a smaller number",
            )

    def _see_Tuple(self, node: ast.Tuple | ast.List, size: bool) -> None:
        for place, element in enumerate(node.elts):
            self.expression(element, size=size and place == 0)

    _see_List = _see_Tuple

    def _see_Starred(self, node: ast.Starred, size: bool) -> None:
        self.expression(node.value, size=size)

    def _see_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                self.say(node, "expression", "** in a dictionary", "write the entries out")
            else:
                self.expression(key)
                self.public(key, "a key of a dictionary")
            self.expression(value)

    def _see_BinOp(self, node: ast.BinOp, size: bool) -> None:
        self.operator(node.op, node)
        self.expression(node.left, size=size and isinstance(node.op, ast.Add))
        self.expression(node.right)
        if isinstance(node.op, ast.FloorDiv | ast.Mod) and self.flow.has_rows(node.right):
            self.say(node, "raises", "// and % raise if a row holds the integer zero",
                     "write torch.floor(a / b), and a - b * torch.floor(a / b) for the rest")  # fmt: skip
        self._bombs(node)

    def _bombs(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Pow):
            exponent, base = check_rows.literal_int(node.right), check_rows.literal_int(node.left)
            number = isinstance(node.right, ast.Constant | ast.UnaryOp)
            small = (exponent is not None and abs(exponent) <= 64) or (exponent is None and number)
            if not small and (base is None or abs(base) > 16) and not self.flow.has_rows(node.left):
                self.say(node, "size", "a power without a bound", "write the exponent as a small number")
            if exponent is not None and base is not None and check_rows.literal_int(node) is None:
                self.say(node, "size", "the number is too large", "use a smaller one")
        if isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant) and isinstance(node.left.value, str):
            self.say(
                node, "expression", "formatting calls methods of the values that it formats", "join strings with +"
            )
        if isinstance(node.op, ast.Mult):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                text = isinstance(one, ast.Constant) and isinstance(one.value, str)
                times = check_rows.literal_int(other)
                if (text or isinstance(one, ast.List | ast.Tuple)) and times is not None and times > 1024:
                    self.say(node, "size", "a sequence is repeated too often", "use a tensor")
        value = check_rows.literal_int(node)
        if value is not None and abs(value) > MAX_INTEGER:
            self.say(node, "size", "the number is too large", "use a smaller one")

    def _see_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.operator(node.op, node)
        if isinstance(node.op, ast.Not):
            self.condition(node.operand)
        else:
            self.expression(node.operand)

    def _see_BoolOp(self, node: ast.BoolOp) -> None:
        for value in node.values:
            self.condition(value)

    def _see_Compare(self, node: ast.Compare) -> None:
        for operator in node.ops:
            self.operator(operator, node)
        parts = [node.left, *node.comparators]
        identity = all(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops)
        truth = len(node.ops) > 1 or any(isinstance(operator, ast.In | ast.NotIn) for operator in node.ops)
        for part in parts:
            if identity and not self.data and isinstance(part, ast.Attribute) and part.attr in allowed_names.WEIGHTS:
                self.expression(part.value)  # `if layer.bias is not None`
            elif truth:
                self.condition(part)
            else:
                self.expression(part)

    def _see_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.expression(node.body)
        self.expression(node.orelse)

    def _see_ListComp(self, node: ast.ListComp | ast.GeneratorExp) -> None:
        self._comprehension(node.generators)
        self.expression(node.elt)

    def _see_DictComp(self, node: ast.DictComp) -> None:
        self._comprehension(node.generators)
        self.expression(node.key)
        self.public(node.key, "a key of a dictionary")
        self.expression(node.value)

    def _comprehension(self, generators: list[ast.comprehension]) -> None:
        for generator in generators:
            if generator.is_async:
                self.say(generator.target, "expression", "async is not allowed", "leave it out")
            self.target(generator.target)
            for name in ast.walk(generator.target):
                if isinstance(name, ast.Name) and name.id in reserved_names.PYTHON_BUILTINS:
                    self.say(name, "shadow", f"{name.id} means the builtin again after the comprehension", "rename it")
            self.iterable(generator.iter)
            for test in generator.ifs:
                self.condition(test)

    def _see_Subscript(self, node: ast.Subscript) -> None:
        if self.flow.is_shape(node.value):
            self._within_shape(node.value)
        else:
            self.expression(node.value)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in parts:
            self.expression(part)
            self.public(part, "an index")
        first = parts[0] if parts else None
        if first is None or not self.flow.has_rows(node.value) or self._is_list(node.value):
            return
        whole = isinstance(first, ast.Slice) and (first.lower, first.upper, first.step) == (None, None, None)
        whole = whole or (isinstance(first, ast.Constant) and first.value is Ellipsis)
        chosen = isinstance(first, ast.Slice) or (isinstance(first, ast.Constant) and first.value is None)
        chosen = chosen or (isinstance(node.value, ast.Name) and node.value.id in self.parameters)
        if not whole and chosen:
            self.say(node, "rows", "rows of the batch are selected by number or by content", "write x[:, ...]")

    def _see_Slice(self, node: ast.Slice) -> None:
        for part in (node.lower, node.upper, node.step):
            if part is not None:
                self.expression(part)

    def _see_Name(self, node: ast.Name, called: bool) -> None:
        name = node.id
        if name == "self" and self.owner is not None:
            self.say(
                node, "self", "self by itself could be changed under another name", "write self.NAME for what you need"
            )
        elif name in self.flow.bound:
            return
        elif name in self.names.aliases:
            self._torch(node, self.names.aliases[name], called)
        elif name in self.names.classes:
            if self.data:
                self.say(node, "layer", f"{name} is created again for every batch", "create it in __init__")
        elif name in self.names.functions or name in self.names.constants:
            return
        elif name in allowed_names.BUILTINS:
            if not called and name not in TYPE_NAMES:
                self.say(node, "builtin", f"{name} is used as a value", "call it directly")
        elif not (called and name in allowed_names.EXCEPTIONS):
            remedy = allowed_names.REMEDIES.get(name, "use torch, math, and what is defined in this file")
            self.say(node, "name", f"{name} is not an allowed name", remedy)

    def _torch(self, node: ast.AST, dotted: str, called: bool) -> None:
        kind, last = kind_of(dotted), dotted.rpartition(".")[2]
        if kind is None or kind == "module":
            remedy = allowed_names.REMEDIES.get(last, "use another function of torch or torch.nn")
            self.say(node, "torch", f"{dotted} is not an allowed part of torch", remedy)
        elif kind == "layer":
            if self.data:
                self.say(node, "layer", f"{dotted} is created again for every batch", "create it in __init__")
        elif kind == "initialiser" and self.data:
            self.say(node, "torch", f"{dotted} writes into weights", "initialise in __init__")
        elif kind in ("function", "loss", "initialiser") and not called:
            self.say(
                node, "torch", f"{dotted} is used as a value, so its arguments can't be checked", "call it directly"
            )

    def _see_Attribute(self, node: ast.Attribute, called: bool) -> None:
        name = node.attr
        dotted = self.names.dotted(node)
        if dotted is not None:
            self._torch(node, dotted, called)
            return
        if name.startswith("__"):
            self.say(node, "dunder", f"{name} gives access to Python internals", "leave it out")
            return
        if isinstance(node.value, ast.Name) and node.value.id == "self" and self.owner is not None:
            walk = called and not self.data and name in allowed_names.WALKS
            if not walk and not self.names.on_self(self.owner, name):
                self._unknown(node, f"self.{name} is not set in __init__ of this class")
            return
        self.expression(node.value)
        if called:
            fits = name in allowed_names.METHODS | allowed_names.CONTAINER_METHODS | allowed_names.LIST_METHODS
            fits = fits or (not self.data and name in allowed_names.WALKS)
        else:
            fits = name in allowed_names.TENSOR_ATTRIBUTES | allowed_names.LAYER_ATTRIBUTES
        if not fits and name not in self.names.own_attributes:
            self._unknown(node, f".{name} is not an allowed attribute")

    def _unknown(self, node: ast.Attribute, reason: str) -> None:
        remedy = allowed_names.REMEDIES.get(node.attr)
        if remedy is None:
            remedy = "write it without the trailing underscore" if node.attr.endswith("_") else "write it differently"
        self.say(node, "attribute", reason, remedy)

    def condition(self, node: ast.expr) -> None:
        """Check that a branch or a truth value does not depend on rows."""
        self.expression(node)
        if self.flow.has_rows(node) or self.flow.has_batch_size(node):
            self.say(node, "data-dependent", "which code runs depends on values of rows, or on their number",
                     "use torch.where, which decides for each row")  # fmt: skip

    def iterable(self, node: ast.expr) -> None:
        """Check what a loop runs over: layers, lists, ranges; not a tensor, whose first axis is the rows."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in allowed_names.ITERATORS:
            self.expression(node.func, called=True)
            for argument in node.args:
                self.iterable(argument)
            for item in node.keywords:
                self.expression(item.value)
            return
        self.expression(node)
        self._looped(node)

    def _looped(self, node: ast.expr) -> None:
        known_list = isinstance(node, ast.List | ast.Tuple | ast.ListComp) or (
            isinstance(node, ast.Name) and self.flow.is_fresh_list(node.id)
        )
        along = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in (
            "unbind", "split", "chunk")  # fmt: skip
        if self.flow.has_batch_size(node) or (self.flow.has_rows(node) and not known_list and not along):
            self.say(node, "rows", "a loop over the rows of a batch, or one that depends on them",
                     "loop over positions: for t in range(x.shape[1])")  # fmt: skip

    def target(self, node: ast.expr) -> None:
        """Check what is assigned to: local names, and `self.x` in `__init__`."""
        if isinstance(node, ast.Name):
            return  # `_binding` has judged it.
        if isinstance(node, ast.Tuple | ast.List):
            for element in node.elts:
                self.target(element)
        elif isinstance(node, ast.Starred):
            self.target(node.value)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            if not self.initialiser:
                self.say(node, "self-write", f"self.{node.attr} is set outside __init__: it could carry data "
                         "from one batch to the next", "return the value, or set it in __init__")  # fmt: skip
            elif node.attr in allowed_names.RESERVED or node.attr.startswith("__"):
                self.say(node, "override", f"self.{node.attr} belongs to nn.Module", "choose another name")
        elif isinstance(node, ast.Attribute):
            self.say(node, "attribute-write", f"{node.attr} of another object is set", "build a new object")
        else:
            self.say(
                node, "in-place", "writes into a tensor, list or dictionary", "build a new one (torch.cat, a list)"
            )
            self.expression(node)

    def generator(self, node: ast.Call, argument: ast.GeneratorExp) -> None:
        """Check a generator that is given to a call: only where the call uses it up."""
        consumes = isinstance(node.func, ast.Name) and node.func.id in ("tuple", "list", "sum", "dict")
        if not consumes:
            self.say(argument, "iterator", "a generator keeps its position", "use a list")
        self._see_ListComp(argument)
