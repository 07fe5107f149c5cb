"""What an admin reads on the page that shows an invitation once, and what its person types."""

from __future__ import annotations

import re
from html import unescape
from typing import Any


def link_of(response: Any) -> str:
    """The link on the page."""
    assert response.status_code == 200, response.content.decode()
    found = re.search(r'value="(http[^"]*/invitation/#[^"]+)"', response.content.decode())
    assert found is not None
    return unescape(found[1])


def twice(password: str) -> dict[str, str]:
    """Both fields for a new password."""
    return {"new_password": password, "again": password}
