"""The verifier: default-deny, one verdict on every Python, no honest way of writing refused without a remedy."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from datasites.enclave import allowed_names, check_statements
from datasites.enclave.findings import MOST_FINDINGS, FindingList
from datasites.enclave.scope import collect, kind_of
from datasites.enclave.verifier import RULESET, check_source
from tests.enclave.models import HANDLED, model

HERE = Path(__file__).parent
ADVERSARIAL = HERE.parent / "adversarial"
CORPUS = sorted([*(ADVERSARIAL / "hostile_models").glob("*.py"), *(ADVERSARIAL / "honest_models").glob("*.py")])
VERDICTS = HERE / "verdicts.json"

#: Run by another Python with nothing but this package on its path.
OTHER_PYTHON = """
import json, pathlib, sys
from datasites.enclave.verifier import check_source
print(json.dumps({name: [[f.line, f.column, f.rule, f.reason, f.remedy] for f in check_source(pathlib.Path(name).read_text("utf-8"))]
                  for name in sys.stdin.read().split("\\n")}))
"""  # noqa: E501


def rules(source):
    return {finding.rule for finding in check_source(source)}


def test_the_plain_model_is_clean():
    assert check_source(model()) == ()


@pytest.mark.parametrize(
    ("forward", "rule"),
    [
        ("return self.fc(x).mean(0)", "rows"),
        ("return self.fc(x).mean(axis=0)", "rows"),
        ("return self.fc(x).mean((0, 1))", "rows"),
        ("return self.fc(x).mean()", "rows"),
        ("return torch.softmax(self.fc(x), 0)", "rows"),
        ("return F.softmax(self.fc(x))", "rows"),
        ("return torch.stack([self.fc(x)])", "rows"),
        ("return torch.flatten(x, 0)", "rows"),
        ("return x.flatten(start_dim=0)", "rows"),
        ("return x.permute(1, 0)", "rows"),
        ("return x.unbind()", "rows"),
        ("return self.fc(x).squeeze()", "rows"),
        ("return self.fc(x)[:-1]", "rows"),
        ("return self.fc(x[0:1])", "rows"),
        ("return self.fc(x.view(1, -1))", "rows"),
        ("return x.repeat(2, 1)", "rows"),
        ("return torch.where(x > 0)", "rows"),
        ("return [self.fc(row) for row in x]", "rows"),
        ("return self.fc(x).max()", "rows"),
        ("axis = 0\nreturn x.sum(dim=axis)", "rows"),
        ("return torch.triu(x)", "rows"),
        ("return self.fc(x) * len(x)", "batch-size"),
        ("return self.fc(x) / x.size(0)", "batch-size"),
        ("return self.fc(x) / x.size()[0]", "batch-size"),
        ("b, *rest = x.shape\nreturn self.fc(x) * b", "batch-size"),
        ("shape = x.shape\nreturn self.fc(x) * shape[0]", "batch-size"),
        ("n = x.shape[0]\nm = n + 1\nreturn self.fc(x) * m", "batch-size"),
        ("return torch.full((x.shape[0], 1), x.shape[0])", "batch-size"),
        ("return torch.ones(1, x.shape[0])", "batch-size"),
        ("for i in range(x.shape[0]):\n    pass\nreturn x", "batch-size"),
        ("while True:\n    pass", "statement"),
        ("if x.shape[0] > 3:\n    return x\nreturn self.fc(x)", "data-dependent"),
        ("y = self.fc(x)\nif y.amax(dim=1).amax(dim=-1) > 0:\n    return x\nreturn y", "data-dependent"),
        ("return x if x.any(dim=1) else self.fc(x)", "data-dependent"),
        ("return self.fc(x) and x", "data-dependent"),
        ("return not x", "data-dependent"),
        ("return 0 < x < 1", "data-dependent"),
        ("return {1: x}[float(x)]", "data-dependent"),
        ("return math.sqrt(x)", "data-dependent"),
        ("return {x: 1}", "data-dependent"),
        ("return x.item()", "attribute"),
        ("return x.T", "attribute"),
        ("return x.add_(1)", "attribute"),
        ("return self.fc.weight", "attribute"),
        ("return self.fc.forward(x)", "attribute"),
        ("return self.training", "attribute"),
        ("return x.__class__", "dunder"),
        ("return self.other(x)", "attribute"),
        ("return nn.Linear(1, 1)(x)", "layer"),
        ("return Net(1)(x)", "layer"),
        ("x += 1\nreturn x", "in-place"),
        ("self.fc.extra = x\nreturn x", "attribute-write"),
        ("kept = [x]\nkept = self.fc\nkept.append(x)\nreturn x", "in-place"),
        ("return self", "self"),
        ("return enumerate(x)", "iterator"),
        ("return max", "builtin"),
        ("return F.relu", "torch"),
        ("return torch.dropout(x)", "torch"),
        ("return F.linear(x, x)", "torch"),
        ("return super().forward(x)", "builtin"),
        ("return torch.exp(*[x])", "call"),
        ("return torch.exp(**{'input': x})", "call"),
        ("return x ** x.shape[1] ** 99", "size"),
        ("return 10 ** 10 * x", "size"),
        ("import os\nreturn x", "statement"),
        ("with torch.no_grad():\n    return x", "statement"),
        ("return 1j * x", "constant"),
        ("return x << 3", "operator"),
        ("yield x", "statement"),
        ("return await_(x)", "name"),
    ],
)
def test_refused_in_forward(forward, rule):
    found = check_source(model(forward))
    assert rule in {finding.rule for finding in found}
    assert all(finding.reason and finding.remedy for finding in found)


@pytest.mark.parametrize(
    "forward",
    [
        "return self.fc(x).mean(dim=1)",
        "return torch.cat([x, x], dim=-1)",
        "b, d = x.shape\nreturn self.fc(x).view(b, -1)",
        "b = x.size(0)\nreturn self.fc(x).reshape(b, 1) + torch.zeros(b, 2).amax(dim=1)",
        "state = x.new_zeros(x.shape[0], 3)\nreturn state",
        "return self.fc(x).view(*x.shape[:-1], 1)",
        "return self.fc(x).expand(x.shape[0], 3)",
        "outs = []\nfor t in range(x.shape[1]):\n    outs.append(x[:, t])\nreturn torch.stack(outs, dim=1)",
        "for i, layer in enumerate([self.fc]):\n    x = layer(x)\nreturn x",
        "if x.dim() == 3:\n    x = x.flatten(1)\nreturn self.fc(x)",
        "if x.shape[1] != 4:\n    raise ValueError('four features')\nreturn self.fc(x)",
        "assert x.ndim == 2\nreturn self.fc(x)",
        "return torch.where(x > 0, x, -x)",
        "mask = torch.tril(torch.ones(4, 4, device=x.device)) == 0\nreturn x.masked_fill(mask, -1e9)",
        "q, k = self.fc(x).chunk(2, dim=-1)\nreturn q * k",
        "return x[:, -1] + x[..., 0]",
        "return sum([self.fc(x) for _ in range(3)])",
        "return self.fc(x) / math.sqrt(x.shape[-1])",
        "total = 0.0\nfor part in x.split(2, dim=1):\n    total = total + part\nreturn total",
    ],
)
def test_allowed_in_forward(forward):
    assert [str(finding) for finding in check_source(model(forward))] == []


@pytest.mark.parametrize(
    ("init", "rule"),
    [
        ("self.weight = self.fc", "override"),
        ("self._buffers = {}", "override"),
        ("self.clock = zip([1], [2])", "iterator"),
        ("self.fc.bias = None", "attribute-write"),
        ("nn.init.constant_(self.fc.weight, 3.0)", "torch"),
        ("self.act = nn.ReLU(True)", "in-place"),
        ("self.norm = nn.InstanceNorm1d(3, track_running_stats=True)", "keyword"),
        ("self.big = nn.Linear(100000, 100000)", "size"),
        ("self.p = nn.Parameter(torch.zeros(3))", "torch"),
        ("self.flat = nn.Flatten(0)", "rows"),
        ("self.apply(print)", "attribute"),
        ("self = nn.Linear(1, 1)", "self"),
        ("self.w = self.fc.weight", "attribute"),
    ],
)
def test_refused_in_init(init, rule):
    assert rule in rules(model(init=init))


@pytest.mark.parametrize(
    ("top", "rule"),
    [
        ("X = [1]", "constant"),
        ("X = {'a': 1}", "constant"),
        ("X = torch.zeros(3)", "constant"),
        ("X = 'a' * 100", "constant"),
        ("nn = 3", "rebind"),
        ("def max(a):\n    return a", "rebind"),
        ("if True:\n    X = 1", "module-level"),
        ("__all__ = ('x',)", "dunder"),
        ("import torch.optim", "import"),
        ("from torch import optim", "import"),
        ("from . import other", "import"),
        ("from torch.nn import Parameter", "import"),
        ("class A(nn.Module, nn.Module):\n    pass", "base"),
        ("class A(nn.Linear):\n    pass", "base"),
        ("class A:\n    pass", "base"),
        ("class A(nn.Module):\n    def train(self, mode):\n        return self.fc", "override"),
        ("class A(nn.Module):\n    for i in range(3):\n        pass", "class-body"),
        ("def helper(a, b=[]):\n    return a", "default"),
        ("def helper(a: print('x')):\n    return a", "annotation"),
        ("def helper(a):\n    '''doc'''\n    def inner():\n        return a\n    return inner", "statement"),
        ("def helper(math):\n    return math", "shadow"),
    ],
)
def test_refused_at_the_top(top, rule):
    assert rule in rules(model(top=top))


def test_entry_points():
    assert "build-model" in rules("from torch import nn\n")
    assert "build-model" in rules("from torch import nn\ndef build_model(width):\n    return nn.Linear(1, 1)\n")
    assert "build-model" in rules(
        "from torch import nn\ndef build_model(n_features, width):\n    return nn.Linear(1, 1)\n"
    )
    assert rules("from torch import nn\ndef build_model(n_features, width=3):\n    return nn.Linear(1, 1)\n") == set()
    assert "loss" in rules(model(loss="def loss(logits, target, weight=1.0):\n    return logits\n"))


def test_loss_is_data_scope():
    source = model(loss="def loss(logits, target):\n    return F.mse_loss(logits.view(-1), target) / len(target)\n")
    assert {"rows", "batch-size"} <= rules(source)


def test_a_helper_called_from_forward_sees_rows():
    helper = "def pick(v):\n    return v if v > 0 else -v\n"
    assert "data-dependent" in rules(model("return pick(self.fc(x))", top=helper))
    assert rules(model(top=helper)) == set()


@pytest.mark.parametrize(
    "words",
    ["caf\u00e9", "\u0438\u0448\u0435\u043c\u0438\u044f", "\u5fc3\u75be\u60a3", "\u05dc\u05d1", "\u00b5g/dl \u2265 5"],
)
def test_comments_and_docstrings_hold_letters_of_any_script(words):
    source = f'"""{words}"""\n' + model(
        init=f"# {words}", methods=f"def halved(self, v):\n    '''{words}'''\n    return v / 2"
    )
    assert rules(source) == set()


@pytest.mark.parametrize(
    "top",
    ["NAME = 'caf\u00e9'", "caf\u00e9 = 1", "'''a'''\n'''caf\u00e9'''", "NAME = 1, 'caf\u00e9'", "x = 1\\\n\u00e9 = 2"]
    + [
        "r'caf\u00e9'",
        "NAME = '\\\n\u00e9'",
        "def f(\u00e9):\n    return 1",
        "x = '#'; \u00e9 = 1",
        "'\\'; \u00e9 = '",
    ],
)
def test_names_and_texts_of_the_code_are_plain(top):
    assert rules(model(top=top)) & {"characters", "syntax"}


@pytest.mark.parametrize(
    "hidden",
    [
        "\u202e",
        "\u200b",
        "\u2066",
        "\u00a0",
        "\u2028",
        "\x85",
        "\ufeff",
        "\ue000",
        "\U000e0041",
        "\x1b",
        "a" + "\u0301" * 5,
    ]
    + ["\u3164", "\u2800", "\ufe0f", "\u034f", "\u180b", "\U0001d159"]
    + ["\ud800", "\u0cf3"],  # half of a pair; a character that Python 3.11 doesn't know and 3.13 does
)
def test_what_is_invisible_or_turns_text_around_is_refused_in_comments_too(hidden):
    assert rules(model(top=f"# a comment {hidden} of a model")) == {"characters"}
    assert "characters" in rules(f'"""A docstring {hidden}."""\n' + model())


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\x00",
        "# caf\u00e9",
        "x = '\u202e'",
        "x = 1\x0c",
        "x = '\\N{BULLET}'",
        "x = '\u2022'",
        "x" * 500,
        "a = 1\n" * 3000,
        "x = " + "(" * 200 + ")" * 200,
        "x = " + "-" * 300 + "1",
        "x = " + "+".join("1" * 90),
        "def f(:\n",
        "match x:\n case _: pass",
        "class A[T]: pass",
        "type X = int",
        "def f():\n\treturn 1\n        return 2\n",
        "\ufeffx = 1",
    ],
)
def test_never_raises_and_refuses_odd_text(text):
    found = check_source(text)
    assert found
    assert all(finding.line >= 1 for finding in found)


@settings(max_examples=150)
@given(st.text(max_size=300))
def test_any_text_gets_a_verdict(text):
    assert check_source(text) == check_source(text)


@settings(max_examples=150)
@given(st.data())
def test_honest_models_with_a_line_lost_or_doubled_get_a_verdict(data):
    source = data.draw(st.sampled_from(CORPUS)).read_text(encoding="utf-8")
    lines = source.split("\n")
    place = data.draw(st.integers(0, len(lines) - 1))
    other = data.draw(st.sampled_from(CORPUS)).read_text(encoding="utf-8").split("\n")
    kept = lines[:place] + data.draw(st.sampled_from([[], [lines[place]] * 2, other[:5]])) + lines[place + 1 :]
    for finding in check_source("\n".join(kept)):
        assert finding.rule


class _LaterExpression(ast.expr):
    """Syntax of a Python that does not exist yet."""


class _LaterStatement(ast.stmt):
    """Syntax of a Python that does not exist yet."""


def test_syntax_that_nobody_has_heard_of_is_refused():
    for node in (ast.Return(_LaterExpression()), _LaterStatement()):
        tree = ast.parse("def f(x):\n    return x")
        function = tree.body[0]
        function.body = [node]
        ast.fix_missing_locations(tree)
        report = FindingList("model.py")
        check_statements.check_function(function, collect(tree, report), report, owner=None)
        assert report.findings()


def test_every_kind_of_syntax_is_handled_or_refused():
    """All of this Python's statement and expression types that have a handler are ones that we meant to allow."""
    kinds = [kind for kind in vars(ast).values() if isinstance(kind, type) and issubclass(kind, ast.expr | ast.stmt)]
    handled = {kind.__name__ for kind in kinds for name in ("_do_", "_see_")
               if hasattr(check_statements._Statements, name + kind.__name__)}  # fmt: skip
    assert handled == HANDLED


def test_reserved_names_cover_what_this_torch_gives_a_module():
    names = {name for name in dir(nn.Module) if not name.startswith("__")} | set(vars(nn.Module()))
    assert names - allowed_names.RESERVED == set()


def test_the_vocabulary_exists_and_writes_nothing_in_place():
    assert all(hasattr(nn, name) for name in allowed_names.LAYERS)
    assert all(hasattr(torch.nn.functional, name) for name in allowed_names.FUNCTIONAL | allowed_names.LOSSES)
    assert all(hasattr(torch, name) for name in allowed_names.TORCH | allowed_names.TORCH_VALUES)
    assert all(hasattr(torch.Tensor, name) for name in allowed_names.METHODS | allowed_names.TENSOR_ATTRIBUTES)
    assert all(hasattr(nn.init, name) for name in allowed_names.INITIALISERS)
    words = allowed_names.METHODS | allowed_names.TORCH | allowed_names.FUNCTIONAL | allowed_names.KEYWORDS
    assert [word for word in words if word.endswith("_") or word.startswith("_")] == []
    assert kind_of("torch.empty") is None
    assert kind_of("torch.manual_seed") is None


@pytest.mark.parametrize("piece", ['\\"""x"', "\\'''x'"])
def test_strings_that_do_not_end_are_not_followed_again_and_again(piece):
    """From each of them to the end of the file took 18 s; a process may take 4 s here, most of it to start."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (4, 4))\n"
        "from datasites.enclave.verifier import check_source\n"
        f"print(*(finding.rule for finding in check_source('\\n'.join([{piece!r} * 56] * 160))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "syntax\n")


def test_findings_are_as_many_as_a_person_reads():
    found = check_source('x = f""\n' * 1500)
    assert len(found) == MOST_FINDINGS + 1
    assert found[-1].reason == f"{1500 - MOST_FINDINGS} more findings from here on"
    assert found[-1].line == MOST_FINDINGS + 1


def _verdicts():
    found = {f"{path.parent.name}/{path.name}": check_source(path.read_text("utf-8")) for path in CORPUS}
    return {name: [[f.line, f.column, f.rule] for f in findings] for name, findings in found.items()}


def test_verdicts_are_those_of_this_rule_set():
    """Whatever Python runs this: the same findings at the same places. A change of verdicts needs a new RULESET."""
    stored = json.loads(VERDICTS.read_text())
    assert stored["ruleset"] == RULESET
    assert _verdicts() == stored["verdicts"]


def _other_python(version):
    """Another Python of this version: beside this one, as version managers keep them, or on PATH."""
    beside = sorted(Path(sys.base_prefix).parent.glob(f"*{version}*/bin/python{version}"))
    for python in [*map(str, beside), shutil.which(f"python{version}")]:
        if python and subprocess.run([python, "-V"], capture_output=True, check=False).returncode == 0:
            return python
    return None


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_another_python_says_the_same(version):
    python = _other_python(version)
    if python is None or version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        pytest.skip(f"no other Python {version} here")
    root = str(HERE.parents[1])
    done = subprocess.run(
        [python, "-B", "-c", OTHER_PYTHON], input="\n".join(map(str, CORPUS)), capture_output=True, text=True,
        env={"PYTHONPATH": root, "PATH": os.environ.get("PATH", "")}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here = {str(path): [[f.line, f.column, f.rule, f.reason, f.remedy] for f in check_source(path.read_text("utf-8"))]
            for path in CORPUS}  # fmt: skip
    assert json.loads(done.stdout) == here


if __name__ == "__main__":
    VERDICTS.write_text(json.dumps({"ruleset": RULESET, "verdicts": _verdicts()}, indent=1) + "\n")
