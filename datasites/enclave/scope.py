"""What the names of a `model.py` mean: imports, definitions, what each class keeps on `self`, who calls whom.

A name that is imported, defined or a builtin has that one meaning everywhere; rebinding or shadowing it is a finding.
Functions are sorted into two scopes. Those that can be reached from `forward` or `loss` see rows (data scope); the
others only build the model (building scope) and may do more. Standard library only.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from datasites.enclave import allowed_names, reserved_names
from datasites.enclave.findings import FindingList

FunctionKey = tuple[str | None, str]


@dataclass
class ClassNames:
    """What a class of the file defines: base class in the file if any, methods, constants, attributes kept on self."""

    base: str | None
    methods: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)


@dataclass
class FileNames:
    """Meanings of a file's names. aliases: name -> dotted torch or math name; data_scope: functions that see rows."""

    aliases: dict[str, str] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)
    classes: dict[str, ClassNames] = field(default_factory=dict)
    data_scope: set[FunctionKey] = field(default_factory=set)

    @property
    def fixed(self) -> set[str]:
        """Return names that nothing may rebind or shadow."""
        return (
            set(self.aliases)
            | self.functions
            | self.constants
            | set(self.classes)
            | allowed_names.BUILTINS
            | allowed_names.EXCEPTIONS
        )

    @property
    def own_attributes(self) -> set[str]:
        """What may be read of another object: what classes of the file define and what means nothing to torch."""
        found = set().union(*(known.methods | known.attributes for known in self.classes.values()))
        found -= allowed_names.RESERVED | reserved_names.OTHER_ATTRIBUTES
        return {name for name in found if not name.startswith("_") and not name.endswith("_")}

    def dotted(self, node: ast.expr) -> str | None:
        """Return the dotted torch or math name that an expression such as `F.relu` stands for, else None."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id)
        if isinstance(node, ast.Attribute):
            root = self.dotted(node.value)
            return None if root is None else f"{root}.{node.attr}"
        return None

    def is_layer(self, node: ast.expr) -> bool:
        """Return whether an expression names an allowed layer type of torch.nn."""
        dotted = self.dotted(node) or ""
        return dotted.startswith("torch.nn.") and dotted.removeprefix("torch.nn.") in allowed_names.LAYERS

    def on_self(self, owner: str | None, attribute: str) -> bool:
        """Return whether `self.attribute` is known in class `owner` or the classes of the file that it derives from."""
        seen: set[str] = set()
        while owner is not None and owner in self.classes and owner not in seen:
            seen.add(owner)
            known = self.classes[owner]
            if attribute in known.methods | known.attributes:
                return attribute not in allowed_names.RESERVED
            owner = known.base
        return False


def collect(tree: ast.Module, report: FindingList) -> FileNames:
    """Read all definitions of a file; reports bad imports, names with two meanings, and recursion."""
    names = FileNames()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            _imports(node, names, report)
        elif isinstance(node, ast.FunctionDef):
            _define(node, node.name, names.functions.add, names, report)
        elif isinstance(node, ast.ClassDef):
            _define(node, node.name, lambda name: names.classes.update({name: ClassNames(None)}), names, report)
            _class(node, names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    _define(target, target.id, names.constants.add, names, report)
    _call_graph(tree, names, report)
    return names


def _imports(node: ast.Import | ast.ImportFrom, names: FileNames, report: FindingList) -> None:
    modules = allowed_names.MODULES
    remedy = f"import only {', '.join(sorted(modules))}"
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name not in modules:
                report.node(node, "import", f"import of {alias.name}", remedy)
            elif alias.asname:
                _bind_import(node, alias.asname, alias.name, names, report)
            else:
                root = alias.name.split(".")[0]
                _bind_import(node, root, root, names, report)
        return
    module = node.module or ""
    if module == "__future__" and not node.level and all(
        alias.name == "annotations" and not alias.asname for alias in node.names
    ):  # fmt: skip
        return
    for alias in node.names:
        full = f"{module}.{alias.name}"
        known = full in modules | {"torch.nn.init"} or kind_of(full) is not None
        if node.level or module not in modules | {"torch.nn.init"} or not known:
            report.node(node, "import", f"import of {alias.name} from {module or 'here'}", remedy)
        else:
            _bind_import(node, alias.asname or alias.name, full, names, report)


def _bind_import(node: ast.AST, name: str, dotted: str, names: FileNames, report: FindingList) -> None:
    # `import torch` and `import torch.nn` both bind torch: saying it twice changes nothing.
    if names.aliases.get(name) != dotted:
        _define(node, name, lambda found: names.aliases.update({found: dotted}), names, report)


def kind_of(dotted: str) -> str | None:
    """Return "layer", "function", "loss", "initialiser", "value" or "module" for a dotted name; None if not allowed."""
    room, _, last = dotted.rpartition(".")
    if dotted in allowed_names.MODULES or dotted == "torch.nn.init":
        return "module"
    kinds = {
        "torch": {"function": allowed_names.TORCH, "value": allowed_names.TORCH_VALUES},
        "torch.nn": {"layer": allowed_names.LAYERS, "value": frozenset({"Module"})},
        "torch.nn.functional": {"function": allowed_names.FUNCTIONAL, "loss": allowed_names.LOSSES},
        "torch.nn.init": {"initialiser": allowed_names.INITIALISERS},
        "math": {"math": allowed_names.MATH},
    }
    for kind, members in kinds.get(room, {}).items():
        if last in members:
            return kind
    return None


def _define(node: ast.AST, name: str, bind: Callable[[str], None], names: FileNames, report: FindingList) -> None:
    if name in names.fixed:
        report.node(node, "rebind", f"{name} already has a meaning in this file", "choose another name")
    elif name.startswith("__"):
        report.node(node, "dunder", f"{name} has a meaning to Python", "choose another name")
    else:
        bind(name)


def _class(node: ast.ClassDef, names: FileNames) -> None:
    known = names.classes.get(node.name)
    if known is None:
        return
    base = node.bases[0] if len(node.bases) == 1 else None
    if isinstance(base, ast.Name) and base.id in names.classes and base.id != node.name:
        known.base = base.id
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            known.methods.add(item.name)
            if item.name == "__init__":
                known.attributes |= {target.attr for target in _self_targets(item)}
        elif isinstance(item, ast.Assign | ast.AnnAssign):
            targets = item.targets if isinstance(item, ast.Assign) else [item.target]
            known.attributes |= {target.id for target in targets if isinstance(target, ast.Name)}


def _self_targets(function: ast.FunctionDef) -> Iterator[ast.Attribute]:
    for node in ast.walk(function):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
            continue
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node


def functions_of(tree: ast.Module) -> Iterator[tuple[FunctionKey, ast.FunctionDef]]:
    """Yield every function and method of a file, by (class or None, name)."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield (None, node.name), node
        elif isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    yield (node.name, item.name), item


def _call_graph(tree: ast.Module, names: FileNames, report: FindingList) -> None:
    """Fill `data_scope`, and report recursion. An edge is any mention, so that an alias makes no difference."""
    functions = dict(functions_of(tree))
    by_name: dict[str, set[FunctionKey]] = {}
    for key in functions:
        owner, name = key
        if name == "__init__" and owner is not None:
            by_name.setdefault(owner, set()).add(key)
        elif name != "forward":
            by_name.setdefault(name, set()).add(key)
    edges: dict[FunctionKey, set[FunctionKey]] = {}
    kept_functions: set[FunctionKey] = set()
    for key, function in functions.items():
        called, kept = _mentions(function)
        edges[key] = set().union(*(by_name.get(word, set()) for word in called | kept))
        # A function that is passed on or kept can be called from anywhere, so it may see rows.
        kept_functions |= {found for word in kept for found in by_name.get(word, set()) if found[1] != "__init__"}
    seen = {key for key in functions if key[1] == "forward" or key == (None, "loss")} | kept_functions
    frontier = list(seen)
    while frontier:
        for following in edges[frontier.pop()] - seen:
            seen.add(following)
            frontier.append(following)
    names.data_scope = seen
    for key in _in_cycles(edges):
        report.node(functions[key], "recursion", f"{key[1]} can reach itself", "write a loop over a fixed range")


def _mentions(function: ast.FunctionDef) -> tuple[set[str], set[str]]:
    """Return names and attributes that a function calls, and those that it mentions otherwise.

    Left out: annotations, and names in the arguments of `super` and after the first argument of `isinstance`, which
    name a class without making one. What is more than a name there counts.
    """
    called: set[str] = set()
    kept: set[str] = set()
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Call):
            word = _word(node.func)
            if word is not None:
                called.add(word)
                pending += ast.iter_child_nodes(node.func)
            else:
                pending.append(node.func)
            callee = node.func.id if isinstance(node.func, ast.Name) else ""
            naming = {"super": 0, "isinstance": 1}.get(callee, len(node.args))
            pending += node.args[:naming]
            pending += [argument for argument in node.args[naming:] if not names_types(argument)]
            pending += node.keywords
        elif isinstance(node, ast.AnnAssign):
            pending += [node.target, *([node.value] if node.value is not None else [])]
        else:
            word = _word(node)
            if word is not None and isinstance(getattr(node, "ctx", None), ast.Load):
                kept.add(word)
            pending += ast.iter_child_nodes(node)
    return called, kept


def names_types(node: ast.expr) -> bool:
    """Return whether an expression is a name, a dotted name, or a tuple of these."""
    if isinstance(node, ast.Tuple):
        return all(map(names_types, node.elts))
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def _word(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _in_cycles(edges: dict[FunctionKey, set[FunctionKey]]) -> set[FunctionKey]:
    # Strip what calls nothing or is called by nothing until nothing changes: what is left lies on or between cycles.
    left = dict(edges)
    while True:
        called = set().union(*left.values()) if left else set()
        keep = {key: following & set(left) for key, following in left.items()}
        keep = {key: following for key, following in keep.items() if following and key in called}
        if keep == left:
            return set(left)
        left = keep
