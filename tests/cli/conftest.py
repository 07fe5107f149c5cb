"""The home that commands run on: that of the hospital's own tests."""

from __future__ import annotations

from tests.hospital.conftest import (
    database,
    desk,
    encoded,
    examined,
    furnished,
    home,
    one_hash_per_password,
    one_process_to_read_and_one_to_price,
    own,
    site,
)

__all__ = [
    "database",
    "desk",
    "encoded",
    "examined",
    "furnished",
    "home",
    "one_hash_per_password",
    "one_process_to_read_and_one_to_price",
    "own",
    "site",
]
