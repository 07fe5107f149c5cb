"""No operation that a model may use raises by what is in a row: whether a round stops would be a message.

Every word of the vocabulary is written as a model would write it, passes the verifier, and runs on each row alone, as
in training, on rows of plain numbers; then on rows that hold what is not a number, infinite, huge, tiny, zero or
negative, backward pass included. Codes and classes may be anything too: they are clamped while rows run.
"""

import warnings

import pytest
import torch

from datasites.enclave import allowed_names, loader
from datasites.enclave.verifier import check_source
from datasites.privacy import per_row
from datasites.privacy.layers import private_form
from tests.enclave.models import model

WIDTH = 16
#: `x` a row of numbers, `y` another, `c` whole numbers, `d` others, `b` true or false; then with more axes.
NAMES = """
y = x.flip(1)
c, d = x.long(), y.long()
b = x > 0
x3, c3 = x.view(x.shape[0], 4, 4), c.view(x.shape[0], 4, 4)
x4 = x.view(x.shape[0], 1, 4, 4)
x5 = x.view(x.shape[0], 1, 2, 2, 4)
"""


def _each(words, value):
    return dict.fromkeys(words.split(), value)


#: Arguments after the first operand. `y` is of the operand's own type.
ARGUMENTS = {
    **_each("abs neg exp expm1 log log1p log2 log10 sqrt rsqrt square sin cos tan tanh sigmoid relu erf round", [""]),
    **_each("floor ceil sign logical_not isnan isfinite logit reciprocal nan_to_num float long bool contiguous", [""]),
    **_each("clone", [""]),
    **_each("add sub mul div maximum minimum logical_and logical_or logical_xor eq ne lt le gt ge atan2", ["y"]),
    **_each("view_as reshape_as expand_as type_as", ["y"]),
    **_each("sum mean prod amax amin argmax argmin std var logsumexp any all softmax log_softmax softmin", ["dim=1"]),
    **_each("cumsum cumprod diff argsort glu normalize", ["dim=1"]),
    "pow": ["y", "2", "-1", "0.5"], "clamp": ["-1, 1", "min=y"], "masked_fill": ["b, 0"],
    "lerp": ["y, 0.5", "y, y"], "addcmul": ["y, y", "y, y, value=2"], "norm": ["2, dim=1"], "flip": ["1"],
    "gather": ["1, torch.tensor([[0, 3]])"], "index_select": ["1, torch.tensor([0, 3])"], "narrow": ["1, 0, 2"],
    "select": ["1, 0"], "flatten": ["1"], "squeeze": ["1"], "unflatten": ["1, (4, 4)"], "roll": ["1, 1"],
    "unsqueeze": ["1"], "view": ["x.shape[0], 4, 4"], "reshape": ["x.shape[0], 4, 4"], "expand": ["x.shape[0], 16"],
    "new_zeros": ["x.shape[0], 2"], "new_ones": ["x.shape[0], 2"], "repeat": ["1, 2"], "cosine_similarity": ["y"],
}  # fmt: skip
#: With results of several tensors: the first is looked at.
SEVERAL = {"unbind": "1", "split": "2, dim=1", "chunk": "2, dim=1", "topk": "2, dim=1", "max": "dim=1", "min": "dim=1",
           "median": "dim=1", "sort": "dim=1"}  # fmt: skip
#: Written out in full, by word.
WRITTEN = {
    "where": ["torch.where(b, x, y)", "x.where(b, y)", "torch.where(x == y, c, d)"],
    "transpose": ["x3.transpose(1, 2)", "torch.transpose(x3, 1, 2)"],
    "swapaxes": ["x3.swapaxes(1, 2)", "torch.swapaxes(c3, 1, 2)"],
    "movedim": ["x3.movedim(1, 2)", "torch.movedim(x3, 1, 2)"],
    "permute": ["x3.permute(0, 2, 1)", "torch.permute(x3, (0, 2, 1))"],
    "matmul": ["x3.matmul(x3)", "torch.matmul(x3, x3)", "x3 @ x3", "c3 @ c3"],
    "bmm": ["x3.bmm(x3)", "torch.bmm(c3, c3)"],
    "einsum": ['torch.einsum("bij,bjk->bik", x3, x3)', 'torch.einsum("bij,bij->b", c3, c3)'],
    "size": ["x * x.size(1)"],
    "dim": ["x * x.dim()"],
    "cat": ["torch.cat([x, y, c], dim=1)"],
    "concat": ["torch.concat([x, y], dim=1)"],
    "stack": ["torch.stack([c, d], dim=1)"],
    "zeros": ["x + torch.zeros(x.shape[0], 16)"],
    "ones": ["c + torch.ones(x.shape[0], 16)"],
    "full": ["x + torch.full((x.shape[0], 16), 2.0)"],
    "zeros_like": ["torch.zeros_like(x) + x"],
    "ones_like": ["torch.ones_like(c) * x"],
    "full_like": ["torch.full_like(x, 3.0) * x"],
    "arange": ["x == torch.arange(16)", "c - torch.arange(16)"],
    "linspace": ["x * torch.linspace(0, 1, 16)"],
    "tensor": ["x * torch.tensor([2.0])"],
    "eye": ["x3 @ torch.eye(4)"],
    "triu": ["x3.masked_fill(torch.triu(torch.ones(4, 4)) == 0, 0.0)"],
    "tril": ["x3 * torch.tril(torch.ones(4, 4))"],
    "pow": ["torch.pow(2, c)", "torch.pow(2.0, x)", "2 ** c", "c ** d", "x ** y"],
    "abs": ["abs(x)", "abs(c)"],
    "sum": ["sum([x, y])", "sum(part for part in [c, d])"],
    "list": ["list([x, y])[0]"],
    "tuple": ["tuple([x, y])[0]"],
    "dict": ["dict(a=x)['a']"],
    "len": ["x * len((1, 2))"],
    "isinstance": ["x if isinstance(x, torch.Tensor) else y"],
    "zip": ["[p * q for p, q in zip([x, c], [y, d])][1]"],
    "enumerate": ["[p * i for i, p in enumerate([c, x])][1]"],
}
OPERATORS = [
    *(f"{left} {operator} {right}" for operator in ("+", "-", "*", "/", "==", "!=", "<", "<=", ">", ">=")
      for left, right in (("x", "y"), ("c", "d"), ("c", "0"), ("x", "0"))),
    "c // 3", "c // -1", "c % 5", "c % -1", "x % 2.5", "-c", "+x", "~c", "~b", "c & d", "b | c", "c ** 2",
    "x ** -1", "x ** 0.5", "x[:, 3]", "c3[:, :, -1]", "x[..., None, 2:9:3]", "(x if x.shape[1] > 2 else y)",
]  # fmt: skip

FUNCTIONS = {
    **_each("relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid logsigmoid tanh softplus softsign", ["x"]),
    **_each("hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink", ["x"]),
    **_each("softmax log_softmax softmin glu normalize", ["x, dim=1"]),
    **{f"{kind}_pool{axes}d": [f"{operand}, 2"] for kind in ("avg", "max")
       for axes, operand in ((1, "x3"), (2, "x4"), (3, "x5"))},
    **{f"adaptive_{kind}_pool{axes}d": [f"{operand}, 1"] for kind in ("avg", "max")
       for axes, operand in ((1, "x3"), (2, "x4"), (3, "x5"))},
    "cosine_similarity": ["x, y"], "pad": ["x, (1, 2)", "c, (1, 2)", 'x3, (1, 1), mode="reflect"'],
    "interpolate": ["x3, scale_factor=2", 'x4, size=7, mode="bilinear"', 'x5, scale_factor=2, mode="trilinear"'],
    "pixel_shuffle": ["x.view(x.shape[0], 4, 2, 2), 2"], "pixel_unshuffle": ["x4, 2"], "unfold": ["x4, 2"],
    "one_hot": ["c, num_classes=3", "c3, 5"],
    "scaled_dot_product_attention": ["x3, x3, x3", "x3, x3, x3, attn_mask=x3 > 0", "x3, x3, x3, attn_mask=x3",
                                     "x3, x3, x3, is_causal=True"],
}  # fmt: skip
_LOSS = "logits.squeeze(1), target"
LOSSES = {
    "binary_cross_entropy_with_logits": [_LOSS, f"{_LOSS}, weight=target, pos_weight=target"],
    "mse_loss": [_LOSS],
    "l1_loss": [_LOSS],
    "smooth_l1_loss": [f"{_LOSS}, beta=0.5"],
    "huber_loss": [f"{_LOSS}, delta=2.0"],
    "poisson_nll_loss": [_LOSS, f"{_LOSS}, log_input=False, full=True"],
    "soft_margin_loss": [_LOSS],
    "cross_entropy": ["logits, target.long()", "logits, target.long(), label_smoothing=0.1, ignore_index=1"],
    "nll_loss": ["F.log_softmax(logits, dim=1), target.long()"],
}
OF_CLASSES = {"cross_entropy", "nll_loss"}
CONTAINERS = {"ModuleList", "ModuleDict"}
_AXES = ((1, "x3"), (2, "x4"), (3, "x5"))
#: How a layer is made, and what it is called with.
LAYERS = {
    **_each("ReLU ReLU6 LeakyReLU ELU CELU SELU GELU SiLU Mish Sigmoid LogSigmoid Tanh Softplus Softsign", ("", "x")),
    **_each("Hardtanh Hardswish Hardsigmoid Hardshrink Softshrink Tanhshrink Identity Dropout", ("", "x")),
    **_each("GLU Softmax LogSoftmax Softmin", ("dim=1", "x")),
    **{f"Dropout{axes}d": ("", operand) for axes, operand in _AXES},
    **{f"{kind}Pool{axes}d": ("2", operand) for kind in ("Avg", "Max") for axes, operand in _AXES},
    **{f"Adaptive{kind}Pool{axes}d": ("1", operand) for kind in ("Avg", "Max") for axes, operand in _AXES},
    **{f"ConstantPad{axes}d": ("1, 0.0", operand) for axes, operand in _AXES},
    **{f"{kind}Pad{axes}d": ("1", operand) for kind in ("Zero", "Replication") for axes, operand in _AXES},
    **{f"{kind}Pad{axes}d": ("1", operand) for kind in ("Reflection", "Circular") for axes, operand in _AXES[:2]},
    **{f"Conv{axes}d": (f"{width}, 2, 2", operand) for (axes, operand), width in zip(_AXES, (4, 1, 1), strict=True)},
    **{f"InstanceNorm{axes}d": (f"{width}, affine=True", operand)
       for (axes, operand), width in zip(_AXES, (4, 1, 1), strict=True)},
    "Linear": ("4, 2", "x3"),
    "Embedding": ("3, 2", "c"), "LayerNorm": ("4", "x3"), "GroupNorm": ("2, 4", "x3"), "RMSNorm": ("4", "x3"),
    "RNN": ("4, 2, batch_first=True", "x3"), "GRU": ("4, 2, batch_first=True", "x3"),
    "LSTM": ("4, 2, batch_first=True", "x3"),
    "MultiheadAttention": ("4, 2, batch_first=True", "x3, x3, x3, key_padding_mask=x3[:, :, 0] > 0"),
    "TransformerEncoderLayer": ("4, 2, 4, batch_first=True", "x3, src_key_padding_mask=x3[:, :, 0] > 0"),
    "TransformerEncoder": ("nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), 2, enable_nested_tensor=False",
                           "x3, src_key_padding_mask=x3[:, :, 0] > 0"),
    "TransformerDecoderLayer": ("4, 2, 4, batch_first=True", "x3, x3"),
    "TransformerDecoder": ("nn.TransformerDecoderLayer(4, 2, 4, batch_first=True), 2", "x3, x3"),
    "Sequential": ("nn.Linear(16, 4), nn.ReLU()", "x"),
    "Flatten": ("", "x3"), "Unflatten": ("1, (4, 4)", "x"), "Upsample": ("scale_factor=2", "x3"),
    "UpsamplingNearest2d": ("scale_factor=2", "x4"), "UpsamplingBilinear2d": ("scale_factor=2", "x4"),
    "PixelShuffle": ("2", "x.view(x.shape[0], 4, 2, 2)"), "PixelUnshuffle": ("2", "x4"), "ChannelShuffle": ("2", "x3"),
    "LocalResponseNorm": ("2", "x3"), "CosineSimilarity": ("", "x, y"),
}  # fmt: skip

#: Layers that give a state or weights as well.
OF_TWO = {"RNN", "GRU", "LSTM", "MultiheadAttention"}


def _written(word):
    """Every way that a word is written as an operation on rows."""
    found = list(WRITTEN.get(word, []))
    for suffix, arguments in (("", ARGUMENTS.get(word, [])), ("[0]", [SEVERAL[word]] if word in SEVERAL else [])):
        for given in arguments:
            for operand, other in (("x", "y"), ("c", "d"), ("b", "b")):
                rest = given.replace("y", other)
                if word in allowed_names.METHODS:
                    found.append(f"{operand}.{word}({rest}){suffix}")
                if word in allowed_names.TORCH:
                    found.append(f"torch.{word}({', '.join(part for part in (operand, rest) if part)}){suffix}")
    return found


CASES = {
    **{f"tensor {word}": [(text, "") for text in _written(word)]
       for word in allowed_names.METHODS | allowed_names.TORCH | allowed_names.BUILTINS_ON_ROWS},
    **{f"F.{word}": [(f"F.{word}({given})", "") for given in FUNCTIONS.get(word, [])]
       for word in allowed_names.FUNCTIONAL},
    **{f"nn.{word}": [(f"self.part({LAYERS[word][1]})" + "[0]" * (word in OF_TWO),
                       f"self.part = nn.{word}({LAYERS[word][0]})")] if word in LAYERS else []
       for word in allowed_names.LAYERS - CONTAINERS},
    "operators": [(text, "") for text in OPERATORS],
}  # fmt: skip


def _rows(hostile):
    generator = torch.Generator().manual_seed(5)
    plain = torch.randn(4, WIDTH, generator=generator)
    if not hostile:
        return plain
    odd = [float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e19, -1e19, 0.0, -0.0, 1e-45, -1.0, -2.5, 7.0]
    mixed = torch.tensor(odd)[torch.randint(len(odd), (24, WIDTH), generator=generator)]
    single = plain[:1].repeat(len(odd), 1)
    single[:, 3] = torch.tensor(odd)
    return torch.cat([*(torch.full((1, WIDTH), value) for value in odd), single, mixed])


def _run(module, loss, rows):
    """Each row alone, forward and back; then as an evaluation runs it. Classes are as odd as the rows."""
    rows = rows.clone().requires_grad_()
    target = rows.detach()[:, 1].contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = per_row.run(module, {0: rows}, loss=loss, target=target)
        given = found.outputs if loss is None else found.losses
        if given.requires_grad:
            torch.autograd.grad(given.sum(), [rows, *module.parameters()], allow_unused=True)
        with torch.no_grad():
            per_row.run(module, {0: rows}, loss=loss, target=target)


def _fits(text, init, loss=""):
    """Whether a model with this operation runs on plain rows; it must then run on all others."""
    source = model(NAMES + f"return {text}", init, loss=loss)
    assert [str(finding) for finding in check_source(source)] == [], text
    namespace = loader.execute(source)
    torch.manual_seed(0)
    module = private_form(namespace["build_model"](WIDTH)).eval()
    try:
        _run(module, namespace.get("loss"), _rows(hostile=False))
    except Exception:
        return False  # for the type of its operand, say: it raises for every row
    _run(module, namespace.get("loss"), _rows(hostile=True))
    return True


@pytest.mark.parametrize("word", sorted(CASES))
def test_no_allowed_operation_raises_by_what_is_in_a_row(word):
    assert CASES[word], "write down how a model uses it"
    ran = [text for text, init in CASES[word] if _fits(text, init)]
    assert ran


def test_every_operator_was_tried():
    for text in OPERATORS:
        assert _fits(text, ""), text


@pytest.mark.parametrize("word", sorted(allowed_names.LOSSES))
def test_no_allowed_loss_raises_by_what_is_in_a_row(word):
    for given in LOSSES[word]:
        loss = f'def loss(logits, target):\n    return F.{word}({given}, reduction="none")\n'
        assert _fits("self.fc(x).expand(-1, 3)" if word in OF_CLASSES else "self.fc(x)", "", loss)


@pytest.mark.parametrize(
    "text",
    ["x // y", "c % d", "1 // c", "x % (y + 1)", "torch.gather(x, 1, c)", "x.gather(1, index=c)",
     "torch.index_select(x, 1, c[:, 0])", "x[:, c[:, 0]]", "x[b]", "torch.tensor(x)", "torch.tensor([x[:, 0]])",
     "x.take_along_dim(c, 1)", "torch.bincount(c)", "x.masked_select(b)", "x.nonzero()", "torch.multinomial(x, 1)",
     "x.scatter(1, c, y)", "torch.repeat_interleave(x, c)", "torch.linalg.inv(x3)", "x3.inverse()", "x3.cholesky()",
     "torch.linalg.solve(x3, x3)", "x.item()", "int(x[:, 0])", "float(x)", "bool(x)", "max(x, y)", "round(x)",
     "x.remainder(y)", "x.fmod(y)", "x.floor_divide(y)", "x.unflatten(1, c)", "x.view(x.shape[0], c)", "x.repeat(1, c)",
     "x.narrow(1, c, 1)", "F.binary_cross_entropy(x, y, reduction='none')", "x << 1", "torch.full((x.shape[0], 2), x)",
     "F.gaussian_nll_loss(x, y, y, reduction='none')", "torch.arange(c)", "x.chunk(c, dim=1)", "x.topk(c, dim=1)"],
)  # fmt: skip
def test_what_can_raise_by_a_row_is_refused_with_a_remedy(text):
    found = check_source(model(NAMES + f"return {text}"))
    written = model(NAMES + f"return {text}").split("\n")
    assert {written[finding.line - 1].strip() for finding in found} == {f"return {text}"}
    assert all(finding.rule and finding.reason and finding.remedy for finding in found)
