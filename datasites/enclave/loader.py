"""Turns one approved `model.py` into a model: verifies it, executes it, looks for damage.

Runs inside the sandbox. The verifier is what keeps model code from reaching the trainer that shares its process; two
cheap lines stand behind it. Builtins and imports are cut down to what verified code may use, and after loading (and
again before every release) the functions that sample, clip, noise and count are compared with what they were before.
Neither is a wall: Python has none within a process.
"""

from __future__ import annotations

import builtins
import inspect
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import opacus.grad_sample
import torch
from pydantic import JsonValue
from torch import nn

from datasites.enclave import allowed_names, verifier
from datasites.enclave.protocol import ModelFinding
from datasites.enclave.shapes import check_shapes
from datasites.privacy import layers, model_checks
from datasites.privacy.model_inputs import Loss
from datasites.study.errors import DatasitesError

MODEL = "model.py"
#: Name of the module that model code runs as.
MODULE_NAME = "submitted_model"


class CodeRefused(DatasitesError, ValueError):
    """The code may not run; `rule` names why."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


@dataclass(frozen=True)
class LoadedModel:
    """A model in its private form (see `privacy.layers`), its loss (None: the trainer's default), and findings.

    Where the model has no private form, `module` is the model as built and a finding blocks it.
    """

    module: nn.Module
    loss: Loss | None
    findings: tuple[ModelFinding, ...]


def load(source: str, n_features: int, config: Mapping[str, JsonValue], genuine: Genuine) -> LoadedModel:
    """Build the model of the approved text of a `model.py`; raises `CodeRefused`, or whatever the model code raises."""
    findings = verifier.check_source(source, MODEL)
    if findings:
        first = findings[0]
        raise CodeRefused(
            f"verifier/{first.rule}", f"{MODEL}:{first.line}: {first.reason} ({len(findings)} finding(s) in all)"
        )
    namespace = execute(source)
    build = namespace["build_model"]
    assert callable(build)  # the verifier has seen its definition
    built = build(n_features, **dict(config))
    if not isinstance(built, nn.Module):
        raise CodeRefused("build-model", f"build_model returned {type(built).__name__}; return a torch.nn.Module")
    _check_kept(built)
    genuine.check()
    findings_ = tuple(
        ModelFinding(where=item.layer, reason=item.rule, remedy=item.remedy, blocking=item.blocking)
        for item in model_checks.check_model(built)
    )
    blocked = any(finding.blocking for finding in findings_)
    loss = namespace.get("loss")
    return LoadedModel(built if blocked else layers.private_form(built), loss if callable(loss) else None, findings_)


def execute(source: str) -> dict[str, object]:
    """Run verified source as a module with few builtins; returns its names."""
    module = types.ModuleType(MODULE_NAME)
    namespace = module.__dict__
    allowed = {name: getattr(builtins, name) for name in allowed_names.BUILTINS | allowed_names.EXCEPTIONS}
    allowed |= {"__build_class__": builtins.__build_class__, "__import__": _guarded_import, "__name__": MODULE_NAME}
    namespace["__builtins__"] = allowed
    exec(compile(source, MODEL, "exec", dont_inherit=True), namespace)
    return namespace


def _guarded_import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Iterable[str] | None = (),
    level: int = 0,
) -> types.ModuleType:
    # torch's own C++ code imports parts of torch when called by model code, and so comes through here too.
    known = name in allowed_names.MODULES | {"__future__"} or (name.startswith("torch.") and name in sys.modules)
    if level != 0 or not known:
        raise ImportError(f"import of {name}: only {', '.join(sorted(allowed_names.MODULES))} can be imported")
    return __import__(name, {}, {}, tuple(fromlist or ()), 0)


def _check_kept(module: nn.Module) -> None:
    """Check that layers keep only plain values beside layers and weights: nothing that could be called, read or grow.

    A class or function kept on `self` would let `forward` call what the verifier judged as building code.
    """
    inherited = set(vars(nn.Module()))
    for name, part in module.named_modules():
        if type(part).__module__ != MODULE_NAME:
            continue
        for attribute, value in vars(part).items():
            if attribute not in inherited and not _is_plain(value):
                where = f"{name or '(model)'}.{attribute}"
                raise CodeRefused("kept-value", f"{where} keeps a {type(value).__name__}; keep numbers, text, layers")


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    # No tensor: an operation that writes into one of its arguments would keep rows in it.
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | range)


class Genuine:
    """Remembers what the functions that matter were before any model code ran. Not a wall; see the top of this file."""

    def __init__(self) -> None:
        # torch replaces some of its own functions when it first loads its lazy parts; let it do so before the look.
        check_shapes(nn.Linear(1, 1), None, np.zeros((1, 1), dtype=np.float32), np.zeros(1, dtype=np.float32))
        self._seen = _snapshot()

    def check(self) -> None:
        """Raise `CodeRefused` when any of them has become another one."""
        now = _snapshot()
        changed = sorted(name for name, parts in self._seen.items() if not _same(parts, now.get(name, ())))
        # An inherited method is replaced by adding one of its name to the class.
        changed += sorted(name for name in now.keys() - self._seen.keys() if name.startswith(_CLASSES))
        if changed:
            raise CodeRefused(
                "monkey-patch", f"model code replaced {len(changed)} function(s) of the trainer: {changed[:5]}"
            )


def _guarded_modules() -> list[types.ModuleType]:
    ours = [module for name, module in sorted(sys.modules.items()) if name.startswith("datasites.")]
    grad_samplers = [module for name, module in sorted(sys.modules.items()) if name.startswith("opacus.grad_sample.")]
    return [*ours, *grad_samplers, opacus.grad_sample, torch, torch.nn.functional, torch.autograd, torch.autograd.graph]


_WATCHED = (torch.Tensor, nn.Module, nn.Parameter, np.random.Generator)
_CLASSES = tuple(f"{owner.__module__}.{owner.__qualname__}." for owner in _WATCHED)


def _snapshot() -> dict[str, tuple[object, ...]]:
    seen: dict[str, tuple[object, ...]] = {}
    for module in _guarded_modules():
        for name, value in list(vars(module).items()):
            if callable(value):
                seen[f"{module.__name__}.{name}"] = _parts(value)
            if inspect.isclass(value) and value.__module__ == module.__name__:
                for member, inner in list(vars(value).items()):
                    seen[f"{module.__name__}.{name}.{member}"] = _parts(inner)
    for owner in _WATCHED:
        for member, inner in list(vars(owner).items()):
            if callable(inner):
                seen[f"{owner.__module__}.{owner.__qualname__}.{member}"] = _parts(inner)
    for layer, sampler in opacus.grad_sample.GradSampleModule.GRAD_SAMPLERS.items():
        seen[f"grad sampler of {layer.__name__}"] = _parts(sampler)
    return seen


def _parts(value: object) -> tuple[object, ...]:
    function = getattr(value, "__func__", value)
    if isinstance(function, types.FunctionType):
        return (function, function.__code__, function.__defaults__, function.__kwdefaults__)
    return (value,)


def _same(before: tuple[object, ...], after: tuple[object, ...]) -> bool:
    return len(before) == len(after) and all(one is other for one, other in zip(before, after, strict=True))
