"""The run that the aggregator leads: that of the researcher's own tests."""

from __future__ import annotations

from tests.researcher.conftest import federation, study

__all__ = ["federation", "study"]
