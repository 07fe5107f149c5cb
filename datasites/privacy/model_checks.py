"""What can be seen in a model before it meets a patient: layers, ownership of parameters, buffers, size.

Reads the model only. What a layer's type can't show is the probe's (`probe.check_independence`).
"""

from __future__ import annotations

from dataclasses import dataclass

from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import nn

from datasites.privacy.layers import private_form
from datasites.privacy.records import SUPPORTED, UnsupportedModel, owners

_BATCH_NORM = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
_INSTANCE_NORM = nn.modules.instancenorm._InstanceNorm
_DROPOUT = nn.modules.dropout._DropoutNd
#: The private form wraps parameters in these; their own parameters are other names for those of the layers inside.
_ALIASES = (DPGRU, DPLSTM, DPRNN)


@dataclass(frozen=True)
class LayerFinding:
    """One thing about one layer. blocking: training is refused; otherwise it is worth knowing."""

    layer: str
    rule: str
    remedy: str
    blocking: bool = True

    def __str__(self) -> str:
        return f"layer {self.layer}: {self.rule}; {self.remedy}"


@dataclass(frozen=True)
class ModelSize:
    """Parameters: what travels each round, frozen ones included. bytes: of the parameters in float32."""

    parameters: int
    trainable: int
    bytes: int


def describe(module: nn.Module) -> ModelSize:
    """Return the size of a model, in any form."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    total = sum(count for count, _ in counts)
    return ModelSize(total, sum(count for count, trained in counts if trained), 4 * total)


def check_model(module: nn.Module, *, most_parameters: int = 50_000_000) -> list[LayerFinding]:
    """Return all findings about `module` as its author built it; it can be trained when none of them blocks."""
    findings = [finding for name, layer in module.named_modules() for finding in _layer(name or "(model)", layer)]
    size = describe(module)
    if not size.trainable:
        findings.append(LayerFinding("(model)", "has no trainable parameter", "add a layer or set requires_grad"))
    if size.parameters > most_parameters:
        findings.append(
            LayerFinding(
                "(model)", f"has {size.parameters:,} parameters, above {most_parameters:,}", "use a smaller model"
            )
        )
    try:
        private = private_form(module)
    except UnsupportedModel as error:
        return [*findings, LayerFinding("(model)", "has no private form", str(error))]
    return findings + _ownership(private)


def _layer(name: str, layer: nn.Module) -> list[LayerFinding]:
    found = []
    if isinstance(layer, _BATCH_NORM):
        found.append(
            LayerFinding(
                name,
                f"{type(layer).__name__} mixes the rows of a batch and stores their statistics",
                "use GroupNorm or LayerNorm, which look at one row",
            )
        )
    elif isinstance(layer, _INSTANCE_NORM) and layer.track_running_stats:
        found.append(LayerFinding(name, "stores statistics of the rows it saw", "set track_running_stats=False"))
    elif list(layer.buffers(recurse=False)) and type(layer).__module__.startswith("torch."):
        found.append(LayerFinding(name, f"{type(layer).__name__} has buffers", "use a layer without buffers"))
    elif list(layer.buffers(recurse=False)):
        found.append(
            LayerFinding(
                name, "registers a buffer", "compute constants in forward; what is stored could learn from rows"
            )
        )
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        found += _embedding(name, layer)
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.padding_mode != "zeros":
        found.append(
            LayerFinding(name, f"padding_mode {layer.padding_mode} has no per-row gradient", "use padding_mode='zeros'")
        )
    if isinstance(layer, nn.LayerNorm) and layer.weight is not None and layer.bias is None:
        found.append(LayerFinding(name, "LayerNorm without bias has no per-row gradient", "use bias=True or RMSNorm"))
    if isinstance(layer, _DROPOUT) and layer.p > 0:
        found.append(
            LayerFinding(
                name,
                "dropout is inactive in private training",
                "leave it or remove it; noise regularises",
                blocking=False,
            )
        )
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        found.append(LayerFinding(name, "has a hook", "write what it does into forward"))
    return found


def _embedding(name: str, layer: nn.Embedding | nn.EmbeddingBag) -> list[LayerFinding]:
    found = []
    if layer.max_norm is not None:
        found.append(LayerFinding(name, "max_norm rewrites weights for the rows seen", "leave max_norm out"))
    if layer.scale_grad_by_freq:
        found.append(
            LayerFinding(name, "scale_grad_by_freq divides by counts over the batch", "leave scale_grad_by_freq out")
        )
    if layer.sparse:
        found.append(LayerFinding(name, "sparse gradients show which codes occurred", "leave sparse out"))
    return found


def _ownership(module: nn.Module) -> list[LayerFinding]:
    found = []
    for name, layer in owners(module).items():
        if type(layer) not in SUPPORTED and not isinstance(layer, _BATCH_NORM):
            found.append(
                LayerFinding(
                    name or "(model)",
                    f"{type(layer).__name__} owns parameters and has no known per-row gradient",
                    "keep parameters in Linear, Conv, Embedding, LayerNorm, GroupNorm, RMSNorm, GRU, LSTM or attention",
                )
            )
    seen: dict[int, str] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, _ALIASES):
            continue
        for parameter_name, parameter in layer.named_parameters(recurse=False):
            first = seen.setdefault(id(parameter), f"{name}.{parameter_name}")
            if first != f"{name}.{parameter_name}":
                found.append(
                    LayerFinding(name, f"shares a parameter with {first}", "use one layer twice, or two layers")
                )
    return found
