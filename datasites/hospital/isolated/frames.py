"""The format of the pipe to a separate process (`isolated.process`), at both ends: a message in JSON, and arrays.

A request is a length and JSON, after which a file's content follows in pieces, each with its length, up to an empty
one. A reply is a length and one `safetensors` file, whose tensor `message` is JSON: no object of it runs code on
reading, and none is larger than the bytes that came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError

Numbers = dict[str, np.ndarray]

#: Said once, when all is imported and nothing has been read.
READY = b"ready\n"
#: Bytes of a piece of a file; and the piece after the last one.
CHUNK, END = 1024 * 1024, b""
#: Bytes of a message: what reads it takes many times as much, and a table's names and findings fit.
MOST_MESSAGE = 16 * 1024 * 1024
#: Letters of what is said of a failure.
LONGEST_MESSAGE = 8000
#: Names of the tensor that is JSON: what was asked for, or `WorkFailed`.
MESSAGE, FAILED = "message", "failed"


class BadFrame(DatasitesError):
    """The other end sent what isn't of this form."""


class WorkFailed(Agreed):
    """The work failed. error: the kind of the exception; message: its own, if ours; where: lines of code."""

    failure: Literal["refused", "memory", "unexpected"]
    error: Annotated[str, Field(max_length=100)]
    message: Annotated[str, Field(max_length=LONGEST_MESSAGE)] = ""
    where: Annotated[str, Field(max_length=LONGEST_MESSAGE)] = ""


def framed(data: bytes) -> bytes:
    """Return the bytes with their length before them."""
    return len(data).to_bytes(8, "little") + data


def pieces(read: Callable[[int], bytes]) -> bytes:
    """Return a file's content, which arrives in pieces."""
    content = bytearray()
    while piece := whole(read):
        content += piece
    return bytes(content)


def whole(read: Callable[[int], bytes]) -> bytes:
    """Return the bytes that `framed` was given; `read` returns as many as it is asked for, or raises `EOFError`."""
    return read(int.from_bytes(read(8), "little"))


def packed(message: bytes, arrays: Mapping[str, np.ndarray], name: str = MESSAGE) -> bytes:
    """Return a reply as bytes: the message as a tensor uint8 (bytes,), and arrays of any shape."""
    return save({name: np.frombuffer(message, np.uint8), **arrays})


def unpacked(data: bytes) -> tuple[bytes | WorkFailed, Numbers]:
    """Return the message and arrays of a reply, of whatever shapes it has; raises `BadFrame`."""
    try:
        arrays = load(data)
        failed = FAILED in arrays
        message = arrays.pop(FAILED if failed else MESSAGE)
        if message.nbytes > MOST_MESSAGE:
            raise BadFrame("a message of that length")
        return (WorkFailed.model_validate_json(message.tobytes()), {}) if failed else (message.tobytes(), arrays)
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadFrame(type(error).__name__) from None


def texts_packed(name: str, texts: Iterable[str]) -> Numbers:
    """Return two arrays for a list of texts: all in UTF-8, one after another, and each one's length in letters.

    Shapes: `<name>_text` uint8 (bytes,), `<name>_lengths` int64 (texts,).
    """
    found = list(texts)
    letters = "".join(found).encode()
    return {f"{name}_text": np.frombuffer(letters, np.uint8), f"{name}_lengths": lengths_of(found)}


def lengths_of(texts: list[str]) -> npt.NDArray[np.int64]:
    """Say how many letters each text has: int64 (texts,)."""
    return np.fromiter(map(len, texts), np.int64, len(texts))


def texts_unpacked(name: str, arrays: Numbers) -> tuple[str, npt.NDArray[np.int64]]:
    """Return the inverse of `texts_packed`: all texts as one, and each one's length in letters, int64 (texts,).

    Raises `BadFrame` where the two don't fit.
    """
    try:
        text, lengths = arrays[f"{name}_text"].tobytes().decode(), arrays[f"{name}_lengths"]
    except (KeyError, UnicodeDecodeError) as error:
        raise BadFrame(type(error).__name__) from None
    if lengths.dtype != np.int64 or lengths.ndim != 1 or (lengths < 0).any() or (lengths > len(text)).any():
        raise BadFrame("lengths")
    if lengths.sum() != len(text):
        raise BadFrame("lengths")
    return text, lengths
