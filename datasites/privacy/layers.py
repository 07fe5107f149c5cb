"""A model's private form: recurrent and attention layers rebuilt from parts whose per-row gradients are known.

torch's own GRU, LSTM, RNN and MultiheadAttention keep their weights outside sub-modules, where no per-row gradient
can be taken. `private_form` puts Opacus' recurrent layers, and an attention layer made of four Linear layers, in
their place with the same weights. Hospital and researcher both call it, so `named_parameters()` has one order.
"""

from __future__ import annotations

import copy

import torch
from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn

from datasites.privacy.records import UnsupportedModel

_RECURRENT: dict[type[nn.Module], type[nn.Module]] = {nn.GRU: DPGRU, nn.LSTM: DPLSTM, nn.RNN: DPRNN}


class RowAttention(nn.Module):
    """Multi-head scaled dot-product attention with rows first, (n, length, width); same numbers as torch's.

    Opacus' own layer is not used: with batch_first it joins its heads in another order than torch's does.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if not attention.batch_first or attention.bias_k is not None or attention.add_zero_attn:
            raise UnsupportedModel(
                "MultiheadAttention: use batch_first=True, add_bias_kv=False and add_zero_attn=False"
            )
        width, self.num_heads = attention.embed_dim, attention.num_heads
        bias = attention.in_proj_bias is not None
        self.query, self.key, self.value = (
            nn.Linear(size, width, bias=bias) for size in (width, attention.kdim, attention.vdim)
        )
        self.out = nn.Linear(width, width, bias=bias)
        # torch's encoder layer reads these before it takes a fast path around this module.
        self.batch_first, self._qkv_same_embed_dim = True, False
        self.in_proj_weight = self.in_proj_bias = None
        with torch.no_grad():
            if attention._qkv_same_embed_dim:
                weights = attention.in_proj_weight.chunk(3)
            else:
                weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            for layer, weight in zip((self.query, self.key, self.value), weights, strict=True):
                layer.weight.copy_(weight)
            self.out.weight.copy_(attention.out_proj.weight)
            if bias:
                for layer, part in zip(
                    (self.query, self.key, self.value), attention.in_proj_bias.chunk(3), strict=True
                ):
                    layer.bias.copy_(part)
                self.out.bias.copy_(attention.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`; masks are True (or -inf) where attention is not allowed.

        Shapes: query (n, length, width), key (n, keys, kdim), value (n, keys, vdim), key_padding_mask (n, keys),
        attn_mask (length, keys) or (n x heads, length, keys). Returns (n, length, width) and the weights: (n, length,
        keys) as the mean over heads, else (n, heads, length, keys); None where they are not needed.
        """
        rows, length, width = query.shape
        heads = self.num_heads

        def split(t: Tensor) -> Tensor:
            return t.reshape(rows, -1, heads, width // heads).transpose(1, 2)

        q, k, v = split(self.query(query)), split(self.key(key)), split(self.value(value))
        scores = q @ k.transpose(2, 3) / (width // heads) ** 0.5
        if attn_mask is not None:
            mask = attn_mask if attn_mask.dim() == 2 else attn_mask.reshape(rows, heads, length, -1)
            scores = scores.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        if key_padding_mask is not None:
            padding = key_padding_mask[:, None, None, :]
            scores = scores.masked_fill(padding, float("-inf")) if padding.dtype == torch.bool else scores + padding
        weights = scores.softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(rows, length, width)
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        return self.out(mixed), shown


def private_form(module: nn.Module) -> nn.Module:
    """Return a copy of `module` with every recurrent and attention layer replaced by an equal one that can be clipped.

    Raises `UnsupportedModel` for settings with no equal: rows not first, projections, biases of keys and values.
    """
    replaced = _replacement(module)
    if replaced is not None:
        return replaced
    module = copy.deepcopy(module)
    for _, child in list(module.named_modules()):
        for part_name, part in list(child.named_children()):
            new = _replacement(part)
            if new is not None:
                setattr(child, part_name, new)
    return module


def _replacement(module: nn.Module) -> nn.Module | None:
    if type(module) is nn.MultiheadAttention:
        return RowAttention(module)
    kind = _RECURRENT.get(type(module))
    if kind is None:
        return None
    assert isinstance(module, nn.RNNBase)
    name = type(module).__name__
    if not module.batch_first:
        raise UnsupportedModel(f"{name}: use batch_first=True, so that rows come first")
    if module.proj_size:
        raise UnsupportedModel(f"{name}: proj_size has no private form; put a Linear layer after it")
    options = {} if kind is not DPRNN else {"nonlinearity": module.nonlinearity}
    new = kind(
        module.input_size,
        module.hidden_size,
        num_layers=module.num_layers,
        bias=module.bias,
        batch_first=True,
        dropout=module.dropout,
        bidirectional=module.bidirectional,
        **options,
    )
    new.load_state_dict(module.state_dict())
    return new
