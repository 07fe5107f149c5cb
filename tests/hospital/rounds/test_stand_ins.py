"""What tests put in place of a sandboxed worker is used as that is: else a slow test would be the first to say so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from datasites.enclave.worker_client import Worker
from datasites.hospital.cases import examination
from datasites.hospital.rounds import row_work
from tests.adversarial.neighbours.doors import StandIn
from tests.hospital.hostile_home import PlainWorker


def used(*rooms: object) -> set[str]:
    """Names of a worker that these rooms use."""
    code = "".join(Path(str(inspect.getsourcefile(room))).read_text() for room in rooms)  # type: ignore[arg-type]
    return set(re.findall(r"\b[wW]orker\.([a-z]\w*)", code))


USED = {PlainWorker: used(row_work), StandIn: used(row_work, examination) - {"initial_parameters"}}


@pytest.mark.parametrize(("stand_in", "name"), [(kind, name) for kind, names in USED.items() for name in sorted(names)])
def test_a_stand_in_has_and_takes_what_is_asked_of_a_worker(stand_in: type, name: str) -> None:
    given = getattr(Worker, name, None)
    if not inspect.isroutine(given):  # an attribute, maybe of the instance alone
        assert hasattr(stand_in, name) or f"self.{name} = " in inspect.getsource(stand_in)
        return
    given = inspect.signature(given).parameters.values()
    by_name = {parameter.name: None for parameter in given if parameter.kind is parameter.KEYWORD_ONLY}
    by_place = [None for parameter in given if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    inspect.signature(getattr(stand_in, name)).bind(*by_place, **by_name)
