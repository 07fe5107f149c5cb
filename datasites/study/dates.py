"""The day by which agreements, studies and keys begin and end: everywhere that of UTC."""

from __future__ import annotations

import datetime


def today() -> datetime.date:
    """Return today in UTC."""
    return datetime.datetime.now(datetime.UTC).date()
