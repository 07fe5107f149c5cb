"""Checks the calls in a `model.py`: what is called, with which arguments, and along which axis.

First of three layers of one checker: calls, then `check_expressions`, then `check_statements`. Standard library only.
"""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod

from datasites.enclave import allowed_names, check_rows
from datasites.enclave.findings import FindingList
from datasites.enclave.scope import FileNames, kind_of, names_types
from datasites.enclave.taint import analyse

MAX_PRODUCT = 10**8
MAX_RANGE = 10_000

#: Positions of `inplace` among the arguments of layers and functions that have it.
_INPLACE_LAYERS = {
    **dict.fromkeys(["ReLU", "ReLU6", "SELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid"], 0),
    **dict.fromkeys(["LeakyReLU", "ELU", "CELU", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d"], 1),
    "Hardtanh": 2,
}
_INPLACE_FUNCTIONS = {
    **dict.fromkeys(["relu", "relu6", "selu", "silu", "mish", "hardswish", "hardsigmoid"], 1),
    **dict.fromkeys(["leaky_relu", "elu", "celu"], 2),
    "hardtanh": 3,
}
#: How many arguments may be positional before `out` would follow; everywhere else `out` is a keyword only.
BEFORE_OUT = {"torch.norm": 4, "torch.nn.functional.normalize": 4}


class Calls(ABC):
    """One function that is being checked, and the rules for calls in it. The next layer adds `expression`."""

    def __init__(self, function: ast.FunctionDef, names: FileNames, report: FindingList, owner: str | None) -> None:
        self.function, self.names, self.report, self.owner = function, names, report, owner
        self.data = (owner, function.name) in names.data_scope
        self.initialiser = owner is not None and function.name == "__init__"
        self.flow = analyse(function, names, data=self.data, method=owner is not None)
        self.parameters = {argument.arg for argument in (*function.args.posonlyargs, *function.args.args)}
        self.loops = 0

    def say(self, node: ast.AST, rule: str, reason: str, remedy: str) -> None:
        """Report a finding at `node`."""
        self.report.node(node, rule, reason, remedy)

    @abstractmethod
    def expression(self, node: ast.expr, *, size: bool = False, called: bool = False) -> None:
        """Check an expression; see `check_expressions`."""

    @abstractmethod
    def generator(self, node: ast.Call, argument: ast.GeneratorExp) -> None:
        """Check a generator that is given to a call; see `check_expressions`."""

    def public(self, node: ast.expr, what: str) -> None:
        """Report `what` if the value of `node` depends on rows."""
        if self.flow.has_rows(node) or self.flow.has_batch_size(node):
            self.say(node, "data-dependent", f"{what} may not depend on rows", "leave the value out")

    def _is_list(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and self.flow.is_fresh_list(node.id)

    def _see_Call(self, node: ast.Call) -> None:
        self.call(node)

    def call(self, node: ast.Call) -> None:
        """Check a call."""
        if self._is_super_init(node):
            self._arguments(node)
            return
        func = node.func
        if isinstance(func, ast.Name):
            self._named_call(node, func)
        elif isinstance(func, ast.Attribute):
            self.expression(func, called=True)
            self._attribute_call(node, func)
        elif isinstance(func, ast.Subscript | ast.Call):
            self.expression(func)
        else:
            self.say(func, "call", "only names, layers and methods can be called", "name it first")
            self.expression(func)
        self._arguments(node)

    def _is_super_init(self, node: ast.Call) -> bool:
        func = node.func
        if not (isinstance(func, ast.Attribute) and func.attr == "__init__" and self.initialiser):
            return False
        inner = func.value
        if not (isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "super"):
            return False
        names = [argument.id if isinstance(argument, ast.Name) else "" for argument in inner.args]
        return not inner.keywords and names in ([], [self.owner, "self"])

    def _named_call(self, node: ast.Call, func: ast.Name) -> None:
        name = func.id
        if name == "super":
            self.say(node, "builtin", "super may only be used as super().__init__()", "call the method itself")
            return
        self.expression(func, called=True)
        dotted = self.names.aliases.get(name)
        if dotted is not None:
            self._torch_call(node, dotted)
        elif name in allowed_names.BUILTINS and name not in self.flow.bound:
            if name == "isinstance":
                self._type_test(node)
            if name in allowed_names.ITERATORS:
                self.say(node, "iterator", f"{name} outside a loop keeps its position", "use it directly in a for loop")
            if name not in allowed_names.BUILTINS_ON_ROWS:
                for argument in [*node.args, *(item.value for item in node.keywords)]:
                    self.public(argument, f"the argument of {name}")
            length = max((check_rows.literal_int(argument) or 0 for argument in node.args), default=0)
            if name == "range" and length > MAX_RANGE:
                self.say(node, "size", f"a loop of more than {MAX_RANGE} iterations", "use tensor operations")

    def _type_test(self, node: ast.Call) -> None:
        # Only on a name: a call in this place would be easy to overlook, even for a reviewer.
        plain = len(node.args) == 2 and not node.keywords and all(map(names_types, node.args))
        if not plain or isinstance(node.args[0], ast.Tuple):
            self.say(node, "call", "isinstance may only test a name against a type", "name the value first: y = ..., "
                     "then isinstance(y, torch.Tensor)")  # fmt: skip

    def _attribute_call(self, node: ast.Call, func: ast.Attribute) -> None:
        dotted = self.names.dotted(func)
        if dotted is not None:
            self._torch_call(node, dotted)
            return
        on_self = isinstance(func.value, ast.Name) and func.value.id == "self"
        if on_self:
            return
        if func.attr in allowed_names.LIST_METHODS:
            if not self._may_grow(func.value):
                self.say(node, "in-place", f"{func.attr} is called on something that is not a list made in this "
                         "function: it could carry data from one batch to the next", "make a list here")  # fmt: skip
        elif func.attr in allowed_names.METHODS:
            has_rows = self.flow.has_rows(func.value)
            problem = check_rows.check_call(
                func.attr, node, method=True, receiver_has_rows=has_rows, has_rows=self.flow.has_rows
            )
            if problem is not None:
                self.say(node, *problem)
            self._public_arguments(node, func.attr, node.args)
            self._keywords(node, "." + func.attr)
            if has_rows and func.attr in allowed_names.SHAPES and not func.attr.startswith("new_"):
                self._shape_begins_with_batch(node, node.args)

    def _may_grow(self, node: ast.expr) -> bool:
        """Tell whether `append` may be called on it: on a list made here, in __init__ and helpers also on their own."""
        if self._is_list(node):
            return True
        if self.data:
            return False
        if isinstance(node, ast.Name):
            values = self.flow.bound.get(node.id, [])
            return bool(values) and all(isinstance(value, ast.List | ast.ListComp | ast.Call) for value in values)
        return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"

    def _public_arguments(self, node: ast.Call, name: str, arguments: list[ast.expr]) -> None:
        """Report rows in numbers and shapes of a tensor function, where a tensor would become a Python number."""
        if name in allowed_names.ROWS_IN_ARGUMENTS:
            return
        for argument in [*arguments, *(item.value for item in node.keywords if item.arg not in ("input", "tensors"))]:
            if self.flow.has_rows(argument) and name in allowed_names.RAISES_ON_INDEX:
                self.say(argument, "raises", f"{name} raises if a row holds an index out of range", "write "
                         "(F.one_hot(index, num_classes=n) * x).sum(dim=1), which accepts any index")  # fmt: skip
            elif self.flow.has_rows(argument):
                self.say(argument, "data-dependent", f"an argument of {name} depends on rows", "write a number")

    def _shape_begins_with_batch(self, node: ast.Call, arguments: list[ast.expr]) -> None:
        first = arguments[0] if arguments else None
        if isinstance(first, ast.Tuple | ast.List) and first.elts:
            first = first.elts[0]
        if first is None or (check_rows.literal_int(first) != -1 and not self.flow.has_batch_size(first)):
            self.say(node, "rows", "the new shape does not begin with the batch", "begin with x.shape[0] or -1")

    def _torch_call(self, node: ast.Call, dotted: str) -> None:
        kind, last = kind_of(dotted), dotted.rpartition(".")[2]
        problem = None
        if kind == "function":
            problem = check_rows.check_call(
                last, node, method=False, receiver_has_rows=False, has_rows=self.flow.has_rows
            )
            self._public_arguments(node, last, node.args if last in allowed_names.MAKERS else node.args[1:])
            if last == "reshape" and node.args and self.flow.has_rows(node.args[0]):
                self._shape_begins_with_batch(node, node.args[1:])
            if last == "one_hot":
                self._classes(node)
        elif kind == "layer":
            problem = check_rows.check_layer(last, node)
            self._inplace(node, last, _INPLACE_LAYERS)
        elif kind == "loss":
            problem = check_rows.check_loss(last, node)
        elif kind == "math":
            for argument in node.args:
                self.public(argument, f"the argument of {dotted}")
        elif kind == "value":
            self.say(node, "torch", f"{dotted} can't be called here", "leave it out")
        if problem is not None:
            self.say(node, *problem)
        self._keywords(node, dotted)
        for item in node.keywords:
            if item.arg == "device" and not (isinstance(item.value, ast.Attribute) and item.value.attr == "device"):
                self.say(item.value, "keyword", "the trainer chooses the device", allowed_names.REMEDIES["device"])
            if item.arg == "track_running_stats" and not (
                isinstance(item.value, ast.Constant) and item.value.value is False
            ):
                self.say(item.value, "keyword", "running statistics keep information about rows", "leave it out")
        product = 1
        for argument in node.args:
            product *= max(1, abs(check_rows.literal_int(argument) or 1))
        if product > MAX_PRODUCT:
            self.say(node, "size", "the tensor or layer is too large", "make it smaller")
        if kind == "function":
            self._inplace(node, last, _INPLACE_FUNCTIONS)
        if len(node.args) > BEFORE_OUT.get(dotted, len(node.args)):
            self.say(node, "in-place", f"{dotted} would write into one of its arguments", "leave the argument out")

    def _classes(self, node: ast.Call) -> None:
        count = check_rows.keyword(node, "num_classes") or (node.args[1] if len(node.args) > 1 else None)
        value = check_rows.literal_int(count)
        if count is None or (value is not None and value < 1):
            self.say(node, "data-dependent", "one_hot counts the classes of the batch", "give num_classes")

    def _keywords(self, node: ast.Call, what: str) -> None:
        for item in node.keywords:
            if item.arg is not None and item.arg not in allowed_names.KEYWORDS:
                remedy = allowed_names.REMEDIES.get(item.arg, "leave it out")
                self.say(item.value, "keyword", f"{item.arg} of {what} is not an allowed keyword",
                         remedy)  # fmt: skip

    def _inplace(self, node: ast.Call, name: str, positions: dict[str, int]) -> None:
        if len(node.args) > positions.get(name, len(node.args)):
            self.say(node, "in-place", f"{name} would work in place", "leave the argument out")

    def _arguments(self, node: ast.Call) -> None:
        dotted = self.names.dotted(node.func) or ""
        initialises = kind_of(dotted) == "initialiser" and not self.data
        local = isinstance(node.func, ast.Name) and node.func.id in self.names.functions | set(self.names.classes)
        own_method = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and (
            node.func.value.id == "self")  # fmt: skip
        shape = self.flow.shape_function(node) is not None or self.flow.gives_shape(node)
        spread = local or own_method or shape or dotted == "torch.nn.Sequential" or self._is_super_init(node)
        for place, argument in enumerate(node.args):
            if initialises and place == 0 and isinstance(argument, ast.Attribute) and (
                argument.attr in allowed_names.WEIGHTS):  # fmt: skip
                self._initialised(argument.value)
                continue
            if isinstance(argument, ast.Starred) and not spread:
                self.say(argument, "call", "* hides the arguments of a torch function", "write them out")
            if isinstance(argument, ast.GeneratorExp):
                self.generator(node, argument)
                continue
            # The batch size may stand first in a shape.
            self.expression(argument, size=shape and place == (1 if dotted == "torch.reshape" else 0))
        for item in node.keywords:
            if item.arg is None:
                if not (local or self._is_super_init(node)):
                    self.say(item.value, "call", "** hides the arguments of a function", "write them out")
            elif item.arg.startswith("__"):
                self.say(item.value, "dunder", f"{item.arg} has a meaning to Python", "choose another name")
            self.expression(item.value)

    def _initialised(self, layer: ast.expr) -> None:
        """Check whose weight an initialiser writes: a layer that was made here, not one that was passed in."""
        self.expression(layer)
        handed_in = isinstance(layer, ast.Name) and layer.id in self.parameters and self.owner is not None
        if handed_in:
            self.say(layer, "torch", "an initialiser writes into a layer that was passed in", "initialise own layers")
