"""Finds model code that moves the rows of a batch out of axis 0, or works along that axis (part of I15).

Privacy does not depend on it: what trains and evaluates runs the model on each row alone (`privacy.per_row`). But a
model that would mix rows if it saw them is refused, also where it does so for one size of batch only and no probe
looks. So the model and its loss run on two batches of different size. Of every operation:
- a result has the same shape in both, but for axis 0, which may grow with the batch (`h - h.squeeze(1)` is (n, n));
- what is given rows first gives rows first; a whole layer of a library as well;
- no axis that is written as -1, or left out, is axis 0: on a tensor with one axis it is.
Verified code has no branch on a row's content, so two sizes speak for all.

Operations inside layers of torch, opacus and this package are trusted and not inspected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from datasites.enclave import allowed_names
from datasites.privacy.model_inputs import Loss, binary_loss
from datasites.privacy.probe import DependentRows

_SIZES = (6, 9)
_LIBRARIES = ("torch.", "opacus.", "datasites.")
#: They take the type of what they are given and no value; and what `one_hot` compares with its number of classes.
_NOT_ROWS = ("aten.new_", "aten.aminmax")
#: Their first result alone is a row's: the other is a sum of weights, which nothing but a mean over the batch reads.
_FIRST_RESULT = ("aten.nll_loss",)

Shape = tuple[int, ...]
#: Name of an operation, and the shapes of what it was given and of what it gave.
Step = tuple[str, tuple[Shape, ...], tuple[Shape, ...]]


def check_shapes(module: nn.Module, loss: Loss | None, x: np.ndarray, y: np.ndarray) -> None:
    """Raise `DependentRows` if the batch size shows anywhere but in axis 0. x, y: (rows, ...), one row or more."""
    short = _steps(module, loss or binary_loss, x, y, _SIZES[0])
    try:
        long = _steps(module, loss or binary_loss, x, y, _SIZES[1])
    except Exception as error:
        raise DependentRows(
            f"model: it runs on {_SIZES[0]} rows and fails on {_SIZES[1]} ({type(error).__name__}); see each row alone"
        ) from error
    if [step[0] for step in short] != [step[0] for step in long]:
        raise DependentRows("model: what it computes depends on the number of rows in the batch; do the same for all")
    for (name, inputs, outputs), (_, inputs_more, outputs_more) in zip(short, long, strict=True):
        for before, after in zip(outputs, outputs_more, strict=True):
            if not _alike(before, after):
                raise DependentRows(
                    f"model: {name} gives shape {before} for {_SIZES[0]} rows and {after} for {_SIZES[1]}; the number "
                    "of rows may show in axis 0 only (check for broadcasting, as in h - h.squeeze(1), and transposes)"
                )
        if name.startswith(_NOT_ROWS):
            continue
        rows = any(before[:1] != after[:1] for before, after in zip(inputs, inputs_more, strict=True))
        if rows and any(before[:1] == after[:1] for before, after in zip(outputs, outputs_more, strict=True)):
            raise DependentRows(f"model: {name} is given rows and gives something else; keep rows first in each result")


def _alike(before: Shape, after: Shape) -> bool:
    if len(before) != len(after) or before[1:] != after[1:]:
        return False
    return before[:1] == after[:1] or before[0] * _SIZES[1] == after[0] * _SIZES[0]


def _steps(module: nn.Module, loss: Loss, x: np.ndarray, y: np.ndarray, size: int) -> list[Step]:
    # The same rows in both sizes: what fails for one size alone fails for its size.
    chosen = np.arange(size) % min(len(y), _SIZES[0])
    inputs, target = torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen])
    with torch.no_grad(), _Recorder(module.eval()) as recorder, _Axes(size, recorder):
        loss(module(inputs), target)
    return recorder.steps


class _Recorder(TorchDispatchMode):
    """Records what operations of model code give, while it is entered; layers of libraries are stepped over."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        #: For each layer that is being run, whether it is a library's, and whether that is made of others.
        self._within: list[tuple[bool, bool]] = []
        self._module = module
        self._handles: list[Any] = []

    def __enter__(self) -> _Recorder:
        for part in self._module.modules():
            library = type(part).__module__.startswith(_LIBRARIES)
            self._handles.append(part.register_forward_pre_hook(self._before(library, part)))
            self._handles.append(part.register_forward_hook(self._after))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)

    @property
    def in_library(self) -> bool:
        """Return whether a layer of a library is being run."""
        return bool(self._within) and self._within[-1][0]

    @property
    def turning(self) -> bool:
        """Return whether that layer is made of others (a recurrent one, a transformer's), which may turn their axes."""
        return any(made_of_others for _, made_of_others in self._within)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here. Else torch imports its compiler, a thousand modules, when this is first entered.
        return False

    def _before(self, library: bool, part: nn.Module) -> Any:
        entry = (library, library and type(part) is not nn.Sequential and any(True for _ in part.children()))
        return lambda *_: self._within.append(entry)

    def _after(self, part: nn.Module, inputs: Any, output: Any) -> None:
        library, _ = self._within.pop()
        if library and not self.in_library:
            # The first result: recurrent layers give states as well, with rows second.
            self.steps.append((type(part).__name__, _shapes(inputs)[:1], _shapes(output)[:1]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.in_library:
            inputs, name = (args, list((kwargs or {}).values())), str(func)
            output = result[0] if name.startswith(_FIRST_RESULT) else result
            self.steps.append((name, _shapes(inputs), _shapes(output)))
        return result


class _Axes(TorchFunctionMode):
    """Refuses an operation along the rows, by the axis that it is given or takes by default."""

    def __init__(self, size: int, recorder: _Recorder) -> None:
        super().__init__()
        self._size, self._recorder = size, recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else kwargs.get("input", kwargs.get("tensors"))
        tensor = first[0] if isinstance(first, tuple | list) and first else first
        rows = isinstance(tensor, torch.Tensor) and tensor.shape[:1] == (self._size,)
        if rows and not self._recorder.turning:
            if name == "scaled_dot_product_attention" and tensor.dim() < 3:
                raise DependentRows(f"model: {name} of matrices looks from row to row; give it (rows, length, width)")
            if name in allowed_names.ALONG_AXIS and 0 in self._axes(name, tensor.dim(), args, kwargs):
                raise DependentRows(f"model: {name} works along the rows, axis 0; keep another axis to work along")
        return func(*args, **kwargs)

    @staticmethod
    def _axes(name: str, dimensions: int, args: Any, kwargs: Any) -> list[int]:
        place = allowed_names.ALONG_AXIS[name] + 1
        given = next((kwargs[word] for word in ("dim", "axis", "dims", "start_dim") if word in kwargs), None)
        if given is None:
            given = args[place] if len(args) > place else (-1 if dimensions == 1 else None)
        if name == "stack":
            dimensions += 1
        axes = given if isinstance(given, tuple | list) else [given]
        return [axis % dimensions for axis in axes if type(axis) is int and -dimensions <= axis < dimensions]


def _shapes(value: Any) -> tuple[Shape, ...]:
    """Return shapes of the tensors in arguments or results, in order."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape),)
    if isinstance(value, tuple | list):
        return tuple(shape for part in value for shape in _shapes(part))
    return ()
