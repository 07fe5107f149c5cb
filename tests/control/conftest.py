"""The parties of a control plane over a store: those of the transport's own tests."""

from __future__ import annotations

from tests.transport.conftest import friends, parties

__all__ = ["friends", "parties"]
