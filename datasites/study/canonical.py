"""Canonical JSON and content hashes: one agreed thing has one byte string, and so one hash and one signature.

The form is that of RFC 8785 (JCS) restricted to what we sign: objects with string keys, arrays, strings, integers,
finite floats, booleans and null; keys sorted; no white space; UTF-8. Floats are written as Python's shortest
repr, so the form is ours and not interoperable with JCS for exotic floats; both ends run this function.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Agreed(BaseModel):
    """Base of everything that is agreed, signed or stored: frozen, no unknown fields, canonical bytes.

    Unknown fields are refused, so that nobody can sign or approve words that the reader's version ignores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def canonical(self) -> bytes:
        """Return the one byte string of this value."""
        return canonical_json(self.model_dump(mode="json"))

    def digest(self) -> str:
        """Return the SHA-256 over `canonical()`, lower-case hex."""
        return sha256_hex(self.canonical())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read canonical bytes; raises `pydantic.ValidationError` on anything else than this type.

        Also refuses JSON that is not in canonical form (duplicate keys, other spacing or key order): two byte
        strings for one value would let a signature and its meaning drift apart.
        """
        value = cls.model_validate_json(data)
        if value.canonical() != data:
            raise ValueError(f"{cls.__name__}: bytes are not in canonical form; send the sender's `canonical()`")
        return value


def canonical_json(value: Any) -> bytes:
    """Serialise plain JSON data (dict, list, str, int, float, bool, None) to its one byte string.

    Raises `ValueError` for NaN or infinity, `TypeError` for anything that is not plain JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def sha256_hex(data: bytes | memoryview) -> str:
    """Return the SHA-256 of `data`, lower-case hex."""
    return hashlib.sha256(data).hexdigest()
