"""Checks one function of a `model.py`, statement by statement; what isn't known to be harmless is refused.

Third of three layers of one checker: `check_calls`, `check_expressions`, then this. `verifier` calls `check_function`
for every function and method, after `scope` has settled what names mean and `taint` what they hold. Standard library
only.
"""

from __future__ import annotations

import ast

from datasites.enclave import allowed_names
from datasites.enclave.check_expressions import TYPE_NAMES, Expressions, constant_fits
from datasites.enclave.findings import FindingList
from datasites.enclave.scope import FileNames, kind_of

MAX_LOOPS = 4


def check_annotation(node: ast.expr, names: FileNames, report: FindingList) -> None:
    """Check an annotation, which runs when the file loads: names, `|`, subscripts, nothing that is called."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            fits = part.id in TYPE_NAMES or part.id in names.classes or part.id in names.aliases
        elif isinstance(part, ast.Attribute):
            fits = names.dotted(part) is not None and kind_of(names.dotted(part) or "") is not None
        else:
            fits = isinstance(
                part, ast.Constant | ast.Subscript | ast.Tuple | ast.List | ast.BinOp | ast.BitOr | ast.Load
            )
        if not fits:
            report.node(part, "annotation", "an annotation may name only plain types, torch.Tensor and nn.Module",
                        "leave it out")  # fmt: skip


def check_function(node: ast.FunctionDef, names: FileNames, report: FindingList, *, owner: str | None) -> None:
    """Report everything in a function or method (of class `owner`) that is not known to be harmless."""
    _Statements(node, names, report, owner).run()


class _Statements(Expressions):
    def run(self) -> None:
        function, arguments = self.function, self.function.args
        for decorator in function.decorator_list:
            self.say(decorator, "decorator", "a decorator runs code on the function", "leave it out")
        if function.returns is not None:
            check_annotation(function.returns, self.names, self.report)
        positional = [*arguments.posonlyargs, *arguments.args]
        if self.owner is not None and (not positional or positional[0].arg != "self"):
            self.say(function, "self", "the first argument of a method must be self", "write def method(self, ...)")
        extra = [item for item in (arguments.vararg, arguments.kwarg) if item is not None]
        for argument in [*positional, *arguments.kwonlyargs, *extra]:
            if argument.annotation is not None:
                check_annotation(argument.annotation, self.names, self.report)
        for default in [*arguments.defaults, *(item for item in arguments.kw_defaults if item is not None)]:
            if not self._plain_default(default):
                self.say(default, "default", "a default is created once and kept between calls: only numbers, "
                         "strings, None, constants and tuples of these are allowed",
                         "use None and create it inside")  # fmt: skip
        for name in self.flow.bound:
            self._binding(name)
        for place, statement in enumerate(function.body):
            docstring = place == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not docstring:
                self.statement(statement)

    def _plain_default(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Constant):
            return constant_fits(node)
        if isinstance(node, ast.Tuple):
            return all(self._plain_default(element) for element in node.elts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return isinstance(node.operand, ast.Constant) and self._plain_default(node.operand)
        if isinstance(node, ast.Name):
            return node.id in self.names.constants
        return self.names.is_layer(node)

    def _binding(self, name: str) -> None:
        if name in self.names.fixed:
            self.say(self.function, "shadow", f"{name} already has another meaning in this file", "choose another name")
        elif name == "self" and (self.owner is None or len(self.flow.bound[name]) > 1):
            self.say(self.function, "self", "self is bound to something else", "choose another name")
        elif name.startswith("__"):
            self.say(self.function, "dunder", f"{name} has a meaning to Python", "choose another name")

    def statement(self, node: ast.stmt) -> None:
        handler = getattr(self, f"_do_{type(node).__name__}", None)
        if handler is None:
            name = type(node).__name__
            remedy = {
                "While": "use for ... in range(...)",
                "With": "leave it out: the trainer takes care of gradients",
                "Try": "let it fail",
                "FunctionDef": "define it at module level",
                "ClassDef": "define it at module level",
                "Import": "import at the top of the file",
                "ImportFrom": "import at the top of the file",
            }.get(name, "leave it out")
            self.say(node, "statement", f"{name} is not an allowed kind of statement", remedy)
            return
        handler(node)

    def body(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def _do_Pass(self, node: ast.Pass) -> None:
        pass

    def _do_Break(self, node: ast.Break) -> None:
        pass

    def _do_Continue(self, node: ast.Continue) -> None:
        pass

    def _do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Call):
            self.say(node, "statement", "an expression without effect", "leave it out")
        else:
            self.expression(node.value)

    def _do_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.expression(node.value)

    def _do_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.target(target)
        self.expression(node.value, size=True)

    def _do_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.target(node.target)
        check_annotation(node.annotation, self.names, self.report)
        if node.value is not None:
            self.expression(node.value, size=True)

    def _do_AugAssign(self, node: ast.AugAssign) -> None:
        if self.data:
            self.say(node, "in-place", "an in-place operation changes a tensor that is used elsewhere (a row, an "
                     "input)", "write x = x + y")  # fmt: skip
        elif not isinstance(node.target, ast.Name):
            self.say(node, "in-place", "only local names may be changed in place", "write a new value")
        self.operator(node.op, node)
        self.expression(node.value)

    def _do_If(self, node: ast.If) -> None:
        self.condition(node.test)
        self.body([*node.body, *node.orelse])

    def _do_Assert(self, node: ast.Assert) -> None:
        self.condition(node.test)
        if node.msg is not None:
            self.expression(node.msg)
            self.public(node.msg, "the message of an assertion")

    def _do_Raise(self, node: ast.Raise) -> None:
        call = node.exc
        plain = (
            isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in allowed_names.EXCEPTIONS
        )
        if not plain or node.cause is not None or (isinstance(call, ast.Call) and call.keywords):
            self.say(node, "statement", "only plain exceptions can be raised", "write raise ValueError(...)")
        elif isinstance(call, ast.Call):
            for argument in call.args:
                self.expression(argument)
                self.public(argument, "the message of an exception")

    def _do_For(self, node: ast.For) -> None:
        self.target(node.target)
        self.iterable(node.iter)
        self.loops += 1
        if self.loops > MAX_LOOPS:
            self.say(node, "loop", f"more than {MAX_LOOPS} nested loops", "use tensor operations")
        self.body([*node.body, *node.orelse])
        self.loops -= 1

    def public(self, node: ast.expr, what: str) -> None:
        if self.flow.has_rows(node) or self.flow.has_batch_size(node):
            self.say(node, "data-dependent", f"{what} may not depend on rows", "leave the value out")
