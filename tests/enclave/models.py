"""Sources of models for the tests of the verifier."""

from __future__ import annotations

import textwrap

#: Kinds of statements and expressions that a model may have.
HANDLED = {
    "AnnAssign", "Assert", "Assign", "AugAssign", "Break", "Continue", "Expr", "For", "If", "Pass", "Raise",
    "Return", "Attribute", "BinOp", "BoolOp", "Call", "Compare", "Constant", "Dict", "DictComp", "IfExp", "List",
    "ListComp", "Name", "Slice", "Starred", "Subscript", "Tuple", "UnaryOp",
}  # fmt: skip


def model(forward: str = "return self.fc(x)", init: str = "", methods: str = "", top: str = "", loss: str = "") -> str:
    """A model with one layer; the arguments are placed in it."""

    def indent(text: str, by: int) -> str:
        return textwrap.indent(textwrap.dedent(text).strip("\n"), " " * by)

    parts = [
        "import math\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n",
        textwrap.dedent(top),
        "class Net(nn.Module):\n    def __init__(self, n):",
        "        super().__init__()\n        self.fc = nn.Linear(n, 1)",
        indent(init, 8),
        "    def forward(self, x):\n" + indent(forward, 8),
        indent(methods, 4),
        textwrap.dedent(loss),
        "def build_model(n_features, **config):\n    return Net(n_features)\n",
    ]
    return "\n".join(part for part in parts if part)
