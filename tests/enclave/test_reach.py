"""Nothing that a `model.py` runs goes unseen: each place for an expression is judged, each call is in the call graph.

A call is put into every place of a model that uses all the syntax there is, and into every place that syntax has and
the model leaves empty. Written over the grammar: a place that a later rule forgets fails here, whatever it is.
"""

import ast
import contextlib

import pytest
import torch
from torch import nn

from datasites.enclave import allowed_names, reserved_names
from datasites.enclave.verifier import check_source
from tests.enclave.models import HANDLED

#: Every kind of statement and expression that a model may have; clean as it stands.
MODEL = '''"""All of it."""
from __future__ import annotations
import math
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS: tuple = (2, -3, 4.0, "m", None)
HALF = 1 / 2
ACT = nn.ReLU


def scaled(x: Tensor, by: float = 1.0, *, shift: tuple = (0, 1)) -> Tensor:
    return x * by + shift[0]


class Part(nn.Module):
    SIZE = 3

    def __init__(self, n, act=nn.ReLU):
        super(Part, self).__init__()
        self.act = act()
        self.fc = nn.Linear(in_features=n, out_features=self.SIZE)

    def forward(self, x):
        return self.act(self.fc(x))


class Net(nn.Module):
    def __init__(self, n: int, **config):
        super().__init__()
        self.kept = []
        self.parts = nn.ModuleList([Part(n) for i in range(2) if i >= 0])
        self.named = nn.ModuleDict({"m": nn.Linear(3, 1), "f": nn.Linear(3, 1)})
        self.fc = nn.Linear(n, 1)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
                nn.init.normal_(part.weight, std=0.1)
        if self.fc.bias is not None:
            count = 1
            count += 1
            self.count = count
        assert self.count > 0, "count"

    def remember(self, x):
        self.kept.append(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 2, "two axes"
        if not (x.dim() == 2 and x.shape[1] < 1000 or x.shape[1] == 3):
            raise ValueError("shape")
        total: Tensor = scaled(x, by=2.0, shift=(1, 2)) - x[:, 0:1:1]
        made = []
        for i, part in enumerate(self.parts):
            if i == 7:
                continue
            made.append(part(x) if i < 5 else part(x + 1))
            if i > 8:
                break
        else:
            pass
        several = {name: 1.0 for name in ("m", "f")}
        low, *others = [~(x > 0), x == 1, -x.float()]
        if isinstance(x, torch.Tensor):
            total = total + several["m"] * math.sqrt(2)
        joined = torch.cat([*made, others[0] * 1.0], dim=1)
        shaped = joined.view(x.shape[0], -1)[..., None].flatten(1)
        picked = torch.einsum("bi,bj->bij", shaped, shaped).sum(dim=(1, 2)).unsqueeze(1)
        return self.named["f"](made[0]) + picked + self.fc(total) * F.softmax(x, dim=-1).amax(dim=1, keepdim=True)


def loss(logits, target):
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), target, reduction="none") + len(logits.shape[1:])


def build_model(n_features, depth=2, *, width: int = 3, **config):
    return Net(n_features, depth=depth, **config)
'''

#: Fields that may be empty, by the kind of node: what is put there must be judged as well.
OPTIONAL = {
    ast.Call: ("args", "keywords"),
    ast.FunctionDef: ("decorator_list", "returns"),
    ast.ClassDef: ("decorator_list", "bases", "keywords"),
    ast.arguments: ("defaults", "kw_defaults"),
    ast.arg: ("annotation",),
    ast.Raise: ("cause",),
    ast.Assert: ("msg",),
    ast.Slice: ("lower", "upper", "step"),
    ast.comprehension: ("ifs",),
    ast.Tuple: ("elts",),
    ast.List: ("elts",),
    ast.Dict: ("values",),
    ast.BoolOp: ("values",),
    ast.Compare: ("comparators",),
    ast.Assign: ("targets",),
}


def _places(tree):
    """(node, field, index, insert) of every place for an expression: what stands there, or what could."""
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            values = value if isinstance(value, list) else [value]
            for index, item in enumerate(values):
                if isinstance(item, ast.expr) and not isinstance(getattr(item, "ctx", None), ast.Store):
                    yield node, name, index if isinstance(value, list) else None, False
            if name in OPTIONAL.get(type(node), ()) and (isinstance(value, list) or value is None):
                yield node, name, len(values) if isinstance(value, list) else None, True


def _variants(source, text, wanted=lambda node: True):
    """(name of the place, source with `text` in it) for every place of `wanted` nodes that can be written down."""
    tree = ast.parse(source)
    for node, field, index, insert in list(_places(tree)):
        if not wanted(node):
            continue
        new = ast.parse(text, mode="eval").body
        before = {name: list(value) if isinstance(value, list) else value for name, value in ast.iter_fields(node)}
        _put(node, field, index, insert, ast.keyword("keyword", new) if field == "keywords" else new)
        written = ast.unparse(tree)
        for name, value in before.items():
            setattr(node, name, value)
        with contextlib.suppress(SyntaxError):  # as a target of an assignment, say
            ast.parse(written)
            yield f"{type(node).__name__}.{field} (line {getattr(node, 'lineno', 0)})", written


def _put(node, field, index, insert, value):
    if index is None:
        setattr(node, field, value)
    elif not insert:
        getattr(node, field)[index] = value
    elif field == "kw_defaults":
        node.kwonlyargs.append(ast.arg("keyword_only"))
        node.kw_defaults.append(value)
    elif field == "defaults":
        node.args.append(ast.arg("positional"))
        node.defaults.append(value)
    else:
        getattr(node, field).append(value)
        if isinstance(node, ast.Dict):
            node.keys.append(ast.Constant("key"))
        if isinstance(node, ast.Compare):
            node.ops.append(ast.Eq())


def test_the_model_is_clean_and_uses_all_the_syntax_there_is():
    assert [str(finding) for finding in check_source(MODEL)] == []
    used = {type(node).__name__ for node in ast.walk(ast.parse(MODEL))}
    assert used >= HANDLED


@pytest.mark.slow
def test_every_place_for_an_expression_is_judged():
    unseen, count = [], 0
    for place, written in _variants(MODEL, "(0).__class__"):
        count += 1
        lines = {number for number, line in enumerate(written.split("\n"), 1) if "__class__" in line}
        if not any(finding.line in lines for finding in check_source(written)):
            unseen.append(place)
    assert unseen == []
    assert count > 300


@pytest.mark.slow
def test_every_call_from_where_rows_are_seen_is_in_the_call_graph():
    """`remember` keeps what it is given: fine while a model is built, refused as soon as `forward` can reach it."""
    unseen, count = [], 0
    spans = [(node.lineno, node.end_lineno) for node in ast.walk(ast.parse(MODEL))
             if isinstance(node, ast.FunctionDef) and node.name in {"scaled", "loss", "forward"}]  # fmt: skip

    def sees_rows(node):
        return any(first <= getattr(node, "lineno", 0) <= last for first, last in spans)

    for place, written in _variants(MODEL, "self.remember(2)", sees_rows):
        count += 1
        lines = written.split("\n")
        called = {number for number, text in enumerate(lines, 1) if "self.remember(2)" in text}
        (kept,) = (number for number, text in enumerate(lines, 1) if "self.kept.append" in text)
        refused = {finding.line: finding.rule for finding in check_source(written)}
        if refused.get(kept) != "in-place" and not called & set(refused):
            unseen.append(place)
    assert unseen == []
    assert count > 100


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = f'a'", [(1, 4)]),
        ('x = Rf"a"', [(1, 4)]),
        ("x = fR'''a\nb'''", [(1, 4)]),
        ("x = ('f', \"f\", 'rf')  # f'no'", []),
        ("x = {'m': 1, 'f': 2}['f']", []),
        ("x = '''\nf' f'a' '''", []),
        ("x = 'it\\'s' + f'a'", [(1, 14)]),
        ("x = ('a\\\nb', f'c')", [(2, 4)]),
        ("x = 1 if'f'else f'x'", [(1, 16)]),
        ("x = f'{'a'}'", [(1, 4)]),
        ("x = f'{\n1}'", [(1, 4)]),
        ("x = 'a\nf'b'", []),
    ],
)
def test_an_f_string_is_told_from_a_string_that_says_f(text, found):
    assert [(item.line, item.column) for item in check_source(text) if item.rule == "f-string"] == found


def test_no_method_that_a_model_may_call_changes_a_container():
    """What a method is called on can't be told from the text: a list on self must offer nothing by such a name."""
    changing = {
        list: {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"},
        dict: {"clear", "pop", "popitem", "setdefault", "update"},
        set: {"add", "clear", "difference_update", "discard", "intersection_update", "pop", "remove",
              "symmetric_difference_update", "update"},
    }  # fmt: skip
    harmless = {list: {"copy", "count", "index"}, dict: {"copy", "fromkeys", "get", "items", "keys", "values"}}
    for kind in (list, dict):
        assert {name for name in dir(kind) if not name.startswith("_")} == changing[kind] | harmless[kind]
    for kind, names in changing.items():
        assert all(hasattr(kind, name) for name in names)
        assert names & (allowed_names.METHODS | allowed_names.CONTAINER_METHODS) == set()
    # `float` alone is shared with layers; their numbers are float32 already, so that it leaves them as they are.
    layers = {name for kind in (nn.Module, nn.ModuleList, nn.ModuleDict, nn.Sequential) for name in dir(kind)}
    assert layers & allowed_names.METHODS == {"float"}


def test_a_name_of_its_own_opens_nothing_of_torch_or_python():
    kinds = [torch.Tensor, nn.Parameter, torch.Size, torch.dtype, list, dict, str, tuple, set, int, float, bool, range]
    kinds += [ValueError, type(check_source), nn.Module, *(getattr(nn, name) for name in allowed_names.LAYERS)]
    named = (
        allowed_names.METHODS
        | allowed_names.TENSOR_ATTRIBUTES
        | allowed_names.CONTAINER_METHODS
        | allowed_names.LIST_METHODS
    )
    named |= (
        allowed_names.WALKS | allowed_names.LAYER_ATTRIBUTES | allowed_names.RESERVED | reserved_names.OTHER_ATTRIBUTES
    )
    names = {name for kind in kinds for name in dir(kind) if not name.startswith("_") and not name.endswith("_")}
    assert names - named == set()
