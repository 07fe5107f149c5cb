"""Which local names of a function hold rows, and which hold the size of the batch.

A name *has rows* when its value is computed from an argument of a function in data scope (`scope`). No branch, loop
or Python number may depend on such a value: then a model does the same for every content, and one probe of it says
something about all. A name *has the batch size* when it comes from `x.shape[0]`; it may be used to give a tensor its
shape and for nothing else, because a loss that knows how many rows there are depends on the other rows.

Shapes beside the first axis, types and `is None` are public. Flow-insensitive: a name that once has rows always has.
Standard library only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from datasites.enclave import allowed_names
from datasites.enclave.check_rows import literal_int
from datasites.enclave.scope import FileNames


@dataclass
class Flow:
    """Names of one function by what they hold. bound: every local name and the values it gets."""

    names: FileNames
    bound: dict[str, list[ast.expr | None]] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    batch: set[str] = field(default_factory=set)

    def has_rows(self, node: ast.AST) -> bool:
        """Return whether the value of an expression depends on what is in a row."""
        if isinstance(node, ast.Name):
            return node.id in self.rows
        if isinstance(node, ast.Attribute):
            public = node.attr in allowed_names.TENSOR_ATTRIBUTES or self.names.dotted(node) is not None
            return not public and self.has_rows(node.value)
        if isinstance(node, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            return False
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ("len", "isinstance"):
                return False
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("size", "dim"):
                return False
            if self.gives_shape(node):
                return True
        return any(self.has_rows(child) for child in ast.iter_child_nodes(node))

    def has_batch_size(self, node: ast.AST) -> bool:
        """Return whether the value of an expression depends on how many rows there are."""
        if self.is_batch_size(node):
            return True
        if isinstance(node, ast.Call) and self.gives_shape(node):
            return False
        if isinstance(node, ast.Subscript) and self.is_shape(node.value):
            return False  # another axis than the first, or `is_batch_size` had said so
        return any(self.has_batch_size(child) for child in ast.iter_child_nodes(node))

    def is_batch_size(self, node: ast.AST) -> bool:
        """Return whether an expression *is* the batch size or a shape with it, rather than computed from it."""
        if isinstance(node, ast.Name):
            return node.id in self.batch
        if isinstance(node, ast.Subscript) and self.is_shape(node.value):
            index = node.slice
            if isinstance(index, ast.Slice):
                lower = literal_int(index.lower)
                return lower is None or lower < 1
            value = literal_int(index)
            return value is None or value == 0
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "len" and len(node.args) == 1:
                return self.has_rows(node.args[0])
            if self._is_size_call(node):
                return not node.args or (literal_int(node.args[0]) or 0) == 0
        return self.is_shape(node)

    def gives_shape(self, node: ast.Call) -> bool:
        """Return whether a call makes a tensor with the batch size in its shape: a use of it that tells nothing."""
        name = self.shape_function(node)
        return name is not None and any(self._mentions(part) for part in node.args)

    def shape_function(self, node: ast.Call) -> str | None:
        """Return the name of the function if its arguments are a shape."""
        if not isinstance(node.func, ast.Attribute):
            return None
        name = node.func.attr
        dotted = self.names.dotted(node.func)
        if dotted is not None:
            known = dotted in {"torch.zeros", "torch.ones", "torch.full", "torch.reshape"}
            return name if known else None
        return name if name in allowed_names.SHAPES else None

    def _mentions(self, node: ast.AST) -> bool:
        return any(self.is_batch_size(child) for child in ast.walk(node))

    def is_shape(self, node: ast.AST) -> bool:
        """Return whether an expression is the whole shape of something that has rows."""
        if isinstance(node, ast.Attribute) and node.attr == "shape":
            return self.has_rows(node.value)
        return self._is_size_call(node) and isinstance(node, ast.Call) and not node.args

    def _is_size_call(self, node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "size"
            and self.has_rows(node.func.value)
        )

    def is_fresh_list(self, name: str) -> bool:
        """Return whether a local name is only ever bound to lists made on the spot, so that it can be changed."""
        values = self.bound.get(name, [])
        return bool(values) and all(isinstance(value, ast.List | ast.ListComp) for value in values)


def analyse(function: ast.FunctionDef, names: FileNames, *, data: bool, method: bool) -> Flow:
    """Analyse the flow of one function. data: its arguments hold rows. method: its first argument is `self`."""
    flow = Flow(names)
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    arguments += [extra for extra in (function.args.vararg, function.args.kwarg) if extra is not None]
    for place, argument in enumerate(arguments):
        flow.bound[argument.arg] = [None]
        if data and not (method and place == 0):
            flow.rows.add(argument.arg)
    bindings = list(_bindings(function))
    for target, value in bindings:
        for name in _names(target):
            flow.bound.setdefault(name, []).append(value if isinstance(target, ast.Name) else None)
    if data:
        size = -1
        while size != len(flow.rows) + len(flow.batch):
            size = len(flow.rows) + len(flow.batch)
            for target, value in bindings:
                _spread(flow, target, value)
    return flow


def _bindings(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.expr]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield target, node.value
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
            yield node.target, node.value
        elif isinstance(node, ast.For | ast.comprehension):
            # As a tuple, so that the loop variable is never taken for the list itself.
            yield ast.Tuple([node.target], ast.Store()), node.iter


def _spread(flow: Flow, target: ast.expr, value: ast.expr) -> None:
    if isinstance(target, ast.Tuple | ast.List) and flow.is_batch_size(value):
        # b, t, c = x.shape: only the first is the batch; a starred target may hold it too.
        for place, element in enumerate(target.elts):
            if place == 0 or isinstance(element, ast.Starred):
                flow.batch.update(_names(element))
        return
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for part, given in zip(target.elts, value.elts, strict=True):
            _spread(flow, part, given)
        return
    if flow.has_rows(value):
        flow.rows.update(_names(target))
    elif flow.has_batch_size(value):
        flow.batch.update(_names(target))


def _names(target: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
