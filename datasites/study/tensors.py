"""The trainable tensors of a model, as all parties flatten them into one vector."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, Field

from datasites.study.canonical import Agreed

#: Numbers in one array, at most.
_MOST_NUMBERS = 2**40


def _countable(shape: tuple[int, ...]) -> tuple[int, ...]:
    # A dimension of 0 must not hide others of any size, of which numpy can make no array.
    if math.prod(max(1, dimension) for dimension in shape) > _MOST_NUMBERS:
        raise ValueError(f"more than {_MOST_NUMBERS} numbers")
    return shape


#: Dimensions of an array or tensor.
Shape = Annotated[
    tuple[Annotated[int, Field(ge=0, le=_MOST_NUMBERS)], ...], Field(max_length=8), AfterValidator(_countable)
]


class Parameter(Agreed):
    """One trainable tensor, in the order in which updates are flattened."""

    name: Annotated[str, Field(max_length=300)]
    shape: Shape
