"""The protocol between a datasite and its worker: typed messages in length-limited frames.

A frame is magic (4 bytes), header length (u32), body length (u64), all little-endian, then a JSON header, then the
body. The header is one message of this file and the layout of its arrays; the body is those arrays end to end, raw
and little-endian. No pickle, no object that runs code on reading. Both ends refuse a frame above their limits before
they read it, and the datasite treats every reply as coming from a stranger: it says beforehand which arrays a reply may
hold, to the last dimension (`decode`), and how long its header may be (`largest_header`).

Rows travel to the worker in such a frame and so never touch a disk. This file imports no torch.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, JsonValue, ValidationError

from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError, describe_validation
from datasites.study.manifest import EvaluationKind, LocalTraining
from datasites.study.rounds import RingTerms
from datasites.study.schema import DataModel
from datasites.study.tensors import Parameter, Shape

MAGIC = b"DSW1"
_PREFIX = struct.Struct("<4sIQ")
MAX_HEADER = 4 * 1024 * 1024
MAX_BODY = 16 * 1024**3
#: Headers of replies: of those that list tensors or findings, and of all others, whose longest text is a failure's.
LISTING_HEADER, SHORT_HEADER = 1024 * 1024, 64 * 1024
#: Values in the header of a reply: each takes some 40 bytes to read, however short it is written.
_MOST_VALUES = 150_000
#: Numbers of one array at most, and bytes that a worker may say it took.
_MOST_BYTES = 2**50

#: Rows that are invented at most for one partition.
MOST_INVENTED = 1_000_000

_TYPES = {"float32": "<f4", "float64": "<f8", "int64": "<i8"}

Arrays = dict[str, np.ndarray]
PartitionName = Literal["training", "held_out", "mock"]
#: A secret key of one use for all that is drawn in answering one request, as hex digits; in no text of the message.
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
Count = Annotated[int, Field(ge=0, le=2**31)]


class ProtocolError(DatasitesError, RuntimeError):
    """The other end sent what the protocol does not allow; the pipe can't be trusted any more."""


class ArrayLayout(Agreed):
    """One array of a frame's body: C order, little-endian."""

    name: Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
    type: Literal["float32", "float64", "int64"]
    shape: Shape

    @property
    def size(self) -> int:
        """Return the bytes of this array in the body."""
        return math.prod(self.shape) * int(_TYPES[self.type][2:])


class LoadCode(Agreed):
    """Check and execute the text of the approved `model.py`; build the model. Reply: `Description`.

    data_model: what ordinary rows hold, for rows that are invented.
    """

    kind: Literal["load_code"] = "load_code"
    source: str
    n_features: Annotated[int, Field(ge=1)]
    config: dict[str, JsonValue] = {}
    data_model: DataModel | None = None


class LoadData(Agreed):
    """Keep the arrays x, y (float32 rows,) and, where there is one, patients (int64 rows,). Reply: `Done`."""

    kind: Literal["load_data"] = "load_data"
    partition: PartitionName


class Train(Agreed):
    """One round on the training partition, from array `parameters` (float32). Reply: `Trained` with array `update`.

    ring: distributed mode only, and then the update is int64; see `privacy.trainer`.
    """

    kind: Literal["train"] = "train"
    round: Annotated[int, Field(ge=1)]
    plan: PrivacyPlan
    training: LocalTraining
    divisor: Annotated[float, Field(gt=0)]
    key: Key
    ring: RingTerms | None = None


class Rehearse(Agreed):
    """`rounds` rounds and the checks on the mock partition, measured. Reply: `Rehearsed`."""

    kind: Literal["rehearse"] = "rehearse"
    plan: PrivacyPlan
    training: LocalTraining
    divisor: Annotated[float, Field(gt=0)]
    ring: RingTerms | None = None
    rounds: Annotated[int, Field(ge=1, le=10)] = 1


class Evaluate(Agreed):
    """Noised counts on the held-out partition for array `parameters`. Reply: `Evaluated` with array `counts`.

    slots: rows that the model is run on at a time. ring: distributed mode only, and then the counts are int64.
    """

    kind: Literal["evaluate"] = "evaluate"
    plan: EvaluationPlan
    evaluation: EvaluationKind
    slots: Annotated[int, Field(ge=1, le=4096)] = 64
    key: Key
    ring: RingTerms | None = None


class Invent(Agreed):
    """Fill the partitions "training" and "held_out" with so many rows that nobody has, shaped as the mock ones.

    Refused by a worker that was given rows of either. Reply: `Done`.
    """

    kind: Literal["invent"] = "invent"
    training: Annotated[int, Field(ge=1, le=MOST_INVENTED)]
    held_out: Annotated[int, Field(ge=1, le=MOST_INVENTED)]


class Initialise(Agreed):
    """The parameters that `build_model` starts from. Reply: `Done` with array `parameters` (float32)."""

    kind: Literal["initialise"] = "initialise"


class Leave(Agreed):
    """Leave. No reply."""

    kind: Literal["close"] = "close"


class ModelFinding(Agreed):
    """What a check found in the built model; `blocking` ones stop the study, others are worth knowing."""

    where: Annotated[str, Field(max_length=300)]
    reason: Annotated[str, Field(max_length=2000)]
    remedy: Annotated[str, Field(max_length=2000)] = ""
    blocking: bool = True


class Description(Agreed):
    """The built model: parameters in flattening order, findings, and what can't be confined here."""

    kind: Literal["description"] = "description"
    parameters: Annotated[tuple[Parameter, ...], Field(max_length=20_000)]
    findings: Annotated[tuple[ModelFinding, ...], Field(max_length=500)]
    warnings: Annotated[tuple[Annotated[str, Field(max_length=500)], ...], Field(max_length=20)] = ()

    @property
    def count(self) -> int:
        """Return the number of parameters."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters)


class Done(Agreed):
    """It worked."""

    kind: Literal["done"] = "done"


class Trained(Agreed):
    """Steps counted by the trainer."""

    kind: Literal["trained"] = "trained"
    steps: Count


class Rehearsed(Agreed):
    """What a rehearsal on mock data cost, and what it found; `rounds` that were run to the end."""

    kind: Literal["rehearsed"] = "rehearsed"
    rounds: Count
    steps: Count
    seconds_per_round: Annotated[float, Field(ge=0)]
    peak_memory_bytes: Annotated[int, Field(ge=0, le=_MOST_BYTES)]
    findings: Annotated[tuple[ModelFinding, ...], Field(max_length=500)]


class Evaluated(Agreed):
    """Counts are in array `counts`, shape (bins, 2), already noised: float64, or int64 in steps of the ring's grid."""

    kind: Literal["evaluated"] = "evaluated"


Failure = Literal["refused", "out_of_memory", "cpu_time", "model_error", "protocol", "internal"]


class Failed(Agreed):
    """It did not work. The reason is for the hospital's eyes; of rows that are not mock it holds nothing."""

    kind: Literal["failed"] = "failed"
    failure: Failure
    rule: Annotated[str, Field(max_length=80)] = ""
    reason: Annotated[str, Field(max_length=8000)] = ""


Request = LoadCode | LoadData | Train | Rehearse | Invent | Evaluate | Initialise | Leave
Reply = Description | Done | Trained | Rehearsed | Evaluated | Failed
Message = Request | Reply

Layouts = tuple[ArrayLayout, ...]


class _Header(Agreed):
    message: Annotated[Message, Field(discriminator="kind")]
    arrays: Annotated[Layouts, Field(max_length=16)]


def largest_header(reply: type[Reply]) -> int:
    """Return the bytes of the header of a reply of this kind, or of a `Failed` in its place."""
    return LISTING_HEADER if reply in (Description, Rehearsed) else SHORT_HEADER


def encode(message: Message, arrays: Mapping[str, np.ndarray] | None = None) -> list[memoryview]:
    """Encode a frame, with arrays of any shape, as buffers to write in order. Raise `ProtocolError` for other types."""
    layouts, bodies = [], []
    for name, array in (arrays or {}).items():
        if array.dtype.name not in _TYPES:
            raise ProtocolError(f"array {name}: type {array.dtype} does not travel; use one of {', '.join(_TYPES)}")
        flat = np.ascontiguousarray(array, dtype=_TYPES[array.dtype.name])
        layouts.append({"name": name, "type": array.dtype.name, "shape": list(array.shape)})
        bodies.append(flat.reshape(-1).data.cast("B") if flat.size else memoryview(b""))
    header = json.dumps({"message": message.model_dump(mode="json"), "arrays": layouts}, allow_nan=False).encode()
    prefix = _PREFIX.pack(MAGIC, len(header), sum(body.nbytes for body in bodies))
    return [memoryview(prefix + header), *bodies]


def decode(
    read: Callable[[int], bytes | bytearray],
    *,
    max_header: int = MAX_HEADER,
    max_body: int = MAX_BODY,
    expected: Layouts | None = None,
) -> tuple[Message, Arrays]:
    """Read one frame with `read(n)`, which returns exactly n bytes or raises `EOFError`.

    Returns the message, and by name the arrays that `encode` was given, each of the same type and shape.
    expected: the arrays that the frame holds, if it holds any; left out, it may hold any up to `max_body`.
    Raises `ProtocolError` when the frame is above a limit, is not a message of this protocol, or holds other arrays; no
    number of the frame is acted upon before it was compared with these.
    """
    if expected is not None:
        max_body = sum(layout.size for layout in expected)
    magic, header_length, body_length = _PREFIX.unpack(read(_PREFIX.size))
    if magic != MAGIC:
        raise ProtocolError("frame does not begin with the protocol's magic: something else wrote to the pipe")
    if header_length > max_header or body_length > max_body:
        raise ProtocolError(f"frame of {header_length} + {body_length} bytes is above {max_header} + {max_body}")
    text = read(header_length)
    if expected is not None and sum(text.count(mark) for mark in b"[{,") > _MOST_VALUES:
        raise ProtocolError(f"frame header holds more than {_MOST_VALUES} values")
    try:
        header = _Header.model_validate_json(text)
    except ValidationError as error:
        raise ProtocolError(
            f"frame header is not a message of this protocol: {describe_validation(error, quote=False)}"
        ) from error
    layouts = header.arrays
    names = [layout.name for layout in layouts]
    if len(set(names)) != len(names) or sum(layout.size for layout in layouts) != body_length:
        raise ProtocolError("arrays are named twice, or their sizes are not the body's")
    if expected is not None and layouts not in ((), expected):
        raise ProtocolError(f"frame holds {_in_words(layouts)}, where {_in_words(expected)} may stand")
    arrays: Arrays = {}
    for layout in layouts:
        # One buffer per array, owned and writable: torch can wrap it without another copy.
        body = read(layout.size)
        owned = body if isinstance(body, bytearray) else bytearray(body)
        arrays[layout.name] = np.frombuffer(owned, dtype=_TYPES[layout.type]).reshape(layout.shape)
    return header.message, arrays


def _in_words(layouts: Layouts) -> str:
    return ", ".join(f"{one.name}: {one.type} {list(one.shape)}" for one in layouts) or "no array"
