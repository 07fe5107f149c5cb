"""What tests put in place of a sandboxed worker is called as that is: else a slow test would be the first to say so."""

from __future__ import annotations

import inspect

import pytest

from datasites.enclave.worker import Worker
from tests.adversarial.neighbours.doors import StandIn
from tests.hospital.hostile_home import PlainWorker

#: Names of both that are called by the product.
CALLED = ("train", "evaluate", "rehearse", "measure", "close", "kill")


@pytest.mark.parametrize(
    ("stand_in", "name"),
    [(kind, name) for kind in (PlainWorker, StandIn) for name in CALLED if hasattr(kind, name)],
)
def test_a_stand_in_takes_what_a_worker_takes(stand_in: type, name: str) -> None:
    given = inspect.signature(getattr(Worker, name)).parameters.values()
    by_name = {parameter.name: None for parameter in given if parameter.kind is parameter.KEYWORD_ONLY}
    by_place = [None for parameter in given if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    inspect.signature(getattr(stand_in, name)).bind(*by_place, **by_name)
