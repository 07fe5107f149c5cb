"""Keyed commitments: how something of a patient's row is bound by what leaves the hospital, and not shown by it.

An approval must bind the very records that it is about, and its hash goes to the researcher. A plain digest of records
confirms every guess at them: who knows all but one patient's age and sex tries 42 values and sees which one fits. So
whatever must bind rows and may leave, in whatever form, is a commitment under one secret key of this home.

Claim: what `commit` returned for any sequence of inputs tells a party without the key nothing but which of them were
equal. Proof: HMAC-SHA256 is a pseudorandom function, so without the key its values can't be told from those of a random
function, which gives each new input fresh uniform bits and repeats itself on an old one; the framing of label and data
is injective. Labels name the study, so that commitments of two studies to one table are two inputs. Binding rests on
the collision resistance of SHA-256, whoever holds the key.

Assumptions: HMAC-SHA256 is a PRF; the key is drawn by the operating system, stays in the home's private folder (mode
0600), and is used for nothing else.
"""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress

from datasites.hospital.config import Home
from datasites.study.errors import InputError
from datasites.study.files import sync_folder, write_durably

KEY_BYTES = 32


class Commitments:
    """Commitments under the home's key, which is made on first use."""

    def __init__(self, home: Home) -> None:
        """Read or make the key; raises `InputError` for a file that holds none."""
        path = home.commitment_key
        with suppress(FileNotFoundError):
            self._key = path.read_bytes()
            if len(self._key) != KEY_BYTES:
                raise InputError(
                    f"{path}: holds no key of {KEY_BYTES} bytes; restore it from the backup of this home. With another "
                    "key, no study that was approved runs on"
                )
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        write_durably(fresh.parent, {fresh.name: secrets.token_bytes(KEY_BYTES)}, new=True)
        # Linked and not renamed: of two processes that make a key at once, both go on with the first one's.
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
        sync_folder(path.parent)
        self._key = path.read_bytes()

    def commit(self, label: str, data: bytes) -> str:
        """Bind `data`, under a label that says what it is and of which study; 64 hex digits."""
        name = label.encode()
        return hmac.digest(self._key, len(name).to_bytes(8, "big") + name + data, "sha256").hex()
