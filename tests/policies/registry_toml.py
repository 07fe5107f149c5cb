"""A registry as TOML, as people would type its agreements in."""

import datetime
import json
from typing import Any

from policies.registry import Registry


def to_toml(registry: Registry) -> str:
    """All newest versions; who entered and confirmed them stands in comments."""
    blocks = []
    for id in sorted({a.terms.id for a in registry.agreements}):
        agreement = registry.latest(id)
        lines = ["[[agreement]]", f"# entered by {agreement.entered_by}, confirmed by {agreement.confirmed_by}"]
        lines += [f"{name} = {toml_value(value)}" for name, value in agreement.terms if value not in ((), "")]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def toml_value(value: Any) -> str:
    """A text, date, or tuple of texts as TOML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, datetime.date):
        return value.isoformat()
    # A JSON string is a TOML basic string, but for DEL, which JSON leaves as it is and TOML forbids.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
