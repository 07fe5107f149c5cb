"""The rooms of the project, and what each may import (README, "Layout")."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Room -> rooms of this project that it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "study": set(),
    "privacy": {"study"},
    "secagg": {"study"},
    "transport": {"study"},
    "control": {"study", "transport"},
    "enclave": {"study", "privacy"},
    "policies": {"study"},
    "aggregator": {"study", "secagg", "transport"},
    "hospital": {"study", "privacy", "secagg", "transport", "control", "enclave", "policies"},
    "researcher": {"study", "privacy", "transport", "control", "enclave", "aggregator"},
    "cli": {"study", "privacy", "transport", "enclave", "policies", "hospital", "researcher"},
}
#: Rooms inside `hospital`, each of which may import those above it and what lies at its own top, but for these modules,
#: which put the datasite together of all rooms.
HOSPITAL_ROOMS = (
    "isolated",
    "audit",
    "people",
    "budget",
    "data",
    "cases",
    "proposals",
    "rounds",
    "evidence",
    "console",
)
ASSEMBLES = {"setup", "doctor", "service", "serving"}
