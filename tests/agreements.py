"""The agreements that a study of the tests needs at one hospital, as a file that people enter."""

from __future__ import annotations

import json
from collections.abc import Sequence

_AGREEMENTS = """
[[agreement]]
id = "baa-university"
kind = "baa"
parties = ["{hospital}", "University"]
services = ["aggregation", "model_distribution"]
effective = 2026-01-01
expires = {expires}
document = "{document}"

[[agreement]]
id = "baa-storage"
kind = "baa"
parties = ["{hospital}", "Storage Provider"]
services = ["{transport}"]
effective = 2026-01-01
expires = 2099-12-31
document = "{document}"

[[agreement]]
id = "irb"
kind = "irb"
parties = ["{hospital}", "University"]
reference = "IRB-2026-017"
purposes = ["cardiology-research"]
features = {features}
effective = 2026-01-01
expires = 2099-12-31
document = "{document}"
"""


def agreements(
    hospital: str, features: Sequence[str], *, expires: str = "2099-12-31", transport: str = "transport"
) -> str:
    """TOML of an agreement with the university, one with the store's provider, and an IRB on these features."""
    return _AGREEMENTS.format(
        hospital=hospital,
        features=json.dumps(list(features)),
        expires=expires,
        transport=transport,
        document="ab" * 32,
    )
