"""What a file does to the process that reads it, it does to that process alone: the datasite says so and goes on."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasites.enclave import confine, processes
from datasites.enclave.sandbox import SandboxConfig
from datasites.hospital.budget import accounting
from datasites.hospital.budget.accounting_messages import Priced, PriceRequest
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data import reading
from datasites.hospital.data.mapping import read_mapping
from datasites.hospital.data.reading import Records, TableReader
from datasites.hospital.isolated import frames, process
from datasites.hospital.isolated.frames import BadFrame
from datasites.hospital.isolated.process import Apart, ApartFailed
from datasites.privacy.events import release
from datasites.privacy.plan import PlanError
from datasites.privacy.pricing import Prices
from datasites.privacy.study_plan import HospitalLimits, plan_of
from datasites.study.errors import DatasitesError, InputError, read_toml
from datasites.study.package import StudyPackage
from datasites.study.schema import DataModel
from tests.hospital.conftest import HEART
from tests.polling import until

ROOT = Path(__file__).resolve().parents[3]
MODEL = read_toml(HEART / "study" / "features.toml", DataModel)
_IMPORTS = "from datasites.hospital.data.tables import parse_table; from datasites.study.errors import InputError"
#: Code for the other end, run when all is imported and before anything is asked.
Hostile = Callable[[str], None]


@pytest.fixture(autouse=True)
def one_process_for_one_act(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "Apart", Apart)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Hostile:
    """Lets a file take over the process that parses it: this code runs there in place of the parser."""

    def taken_over(code: str) -> None:
        body = textwrap.indent(textwrap.dedent(code), "    ")
        parser = f"{_IMPORTS}\ndef parser(*_):\n{body}\n"
        taking = f"import datasites.hospital.data.reading_child as r; exec({parser!r}); r.parse_table = parser; "
        monkeypatch.setattr(process, "_BEGIN", process._BEGIN.replace("child.main()", f"{taking}child.main()"))

    return taken_over


@pytest.fixture
def heart(furnished: Home) -> DatasetSettings:
    return furnished.dataset("heart")


def read(home: Home) -> Records:
    dataset = home.dataset("heart")
    with TableReader(home) as reader:
        return reader.records(dataset, read_mapping(home.root / dataset.mapping), MODEL)


def refusal(home: Home) -> str:
    """Why the table can't be read; what comes next can."""
    with TableReader(home) as reader:
        dataset = home.dataset("heart")
        with pytest.raises(ApartFailed) as refused:
            reader.cells(dataset)
    assert str(home.root / dataset.table) in str(refused.value)
    return str(refused.value)


def alive(pid: int) -> bool:
    """Whether it has not ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_of(reader: TableReader) -> list[int]:
    assert isinstance(reader._apart, Apart)
    return list(processes.family(reader._apart._process.pid))


def test_what_is_read_apart_is_what_is_read_here(furnished: Home, heart: DatasetSettings) -> None:
    from datasites.hospital.data.tables import read_table
    from tests.hospital.prepared import prepare

    table = read_table(furnished.root / heart.table)
    arrays, features, prepared = prepare(table.cells, read_mapping(furnished.root / heart.mapping), MODEL)
    found = read(furnished)
    assert (found.x == arrays["x"]).all()
    assert (found.y == arrays["y"]).all()
    assert found.whose == arrays["patient"].tolist()
    assert found.seen.features == features
    assert list(found.cells) == list(table.cells.itertuples(index=False, name=None))
    assert (found.seen.rows, found.seen.kept, found.seen.patients) == (303, prepared.rows, prepared.patients)


def test_without_a_sandbox_it_is_a_process_of_its_own_all_the_same(furnished: Home, heart: DatasetSettings) -> None:
    settings = furnished.settings.model_copy(update={"sandbox": SandboxConfig(mode="off")})
    with TableReader(dataclasses.replace(furnished, settings=settings)) as reader:
        assert reader.rows(heart) == 303
        both = all_of(reader)
    until(lambda: not any(map(alive, both)))


def test_it_ends_with_the_act_that_it_was_started_for(furnished: Home, heart: DatasetSettings) -> None:
    with TableReader(furnished) as reader:
        assert reader.rows(heart) == 303
        both = all_of(reader)
        assert len(both) > 1
    until(lambda: not any(map(alive, both)))


def test_it_sees_no_home_no_network_and_no_descriptor(
    furnished: Home,
    monkeypatch: pytest.MonkeyPatch,
    hostile: Hostile,
) -> None:
    monkeypatch.setenv("DATASITES_PASSPHRASE", "of the key")
    secret = os.open(furnished.key, os.O_RDONLY)
    os.set_inheritable(secret, True)
    hostile(
        f"""
        import os, socket, sys
        def fails(act):
            try:
                act()
            except OSError:
                return True
            return False
        seen = dict(
            key=os.path.exists({str(furnished.key)!r}),
            home=os.path.exists({str(furnished.root)!r}),
            environment="DATASITES_PASSPHRASE" in os.environ,
            network=not fails(lambda: socket.create_connection(("127.0.0.1", 9))) or not fails(socket.socket),
            descriptors=len(os.listdir("/proc/self/fd")) > 6,  # standard ones, the pipe, and the one that lists
            child=not fails(os.fork),
            django="django" in sys.modules,
            keys="datasites.study.identity" in sys.modules and "datasites.hospital.audit.commitments" in sys.modules,
        )
        raise InputError(" ".join(name for name, there in seen.items() if there) or "nothing")
        """
    )
    try:
        with TableReader(furnished) as reader, pytest.raises(InputError, match="^nothing$"):
            reader.rows(furnished.dataset("heart"))
    finally:
        os.close(secret)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (
            "import os; os.abort()",
            "ended with SIG(ABRT|SEGV) before it had answered; make the file smaller, or export it again as CSV",
        ),
        ("import os; os._exit(3)", "ended with exit code 3 before it had answered"),
        ("return bytearray(1 << 40)", "needs more than .* bytes of memory .* raise `memory` under .sandbox.limits."),
        (
            "raise KeyError('Mrs Smith')",
            "an unexpected KeyError in the process that works on it; make the file smaller",
        ),
    ],
)
def test_a_table_that_breaks_its_reader_is_named_with_a_remedy(
    furnished: Home,
    hostile: Hostile,
    caplog: pytest.LogCaptureFixture,
    does: str,
    said: str,
) -> None:
    hostile(does)
    words = refusal(furnished)
    assert re.search(said, words)
    assert "Smith" not in words + caplog.text
    hostile("return parse_table(*_)")
    assert len(read(furnished).y) == 303, "and the datasite goes on"


def test_a_reader_that_is_killed_from_outside(
    furnished: Home, hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the kernel, of a machine without memory left, once it was found alive: else another would be started."""
    hostile("import time; time.sleep(600)")
    ask = Apart.ask
    with TableReader(furnished) as reader:

        def killed(*arguments: Any) -> Any:
            os.kill(all_of(reader)[-1], signal.SIGKILL)
            return ask(*arguments)

        monkeypatch.setattr(Apart, "ask", killed)
        with pytest.raises(ApartFailed, match="was killed before it had answered; as by a machine without memory"):
            reader.rows(furnished.dataset("heart"))


def test_a_reader_that_hangs_is_ended(
    furnished: Home,
    hostile: Hostile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "_TO_ANSWER", 1.0)
    hostile("import time; time.sleep(600)")
    assert "gave no answer in 1 s, and was ended" in refusal(furnished)


@pytest.mark.parametrize(
    "answer",
    [
        b"Mrs Smith" * 100,
        (1 << 40).to_bytes(8, "little"),
        (8).to_bytes(8, "little") + b"\xff" * 8,
        (24).to_bytes(8, "little") + (1 << 62).to_bytes(8, "little") + b"{" * 16,
    ],
    ids=["text", "too long", "no header", "a header of any length"],
)
def test_an_answer_that_is_none_is_refused(furnished: Home, hostile: Hostile, answer: bytes) -> None:
    hostile(
        f"""
        import os, sys
        frame = sys._getframe()
        while "replies" not in frame.f_locals:
            frame = frame.f_back
        os.write(frame.f_locals["replies"], {answer!r})
        os._exit(0)
        """
    )
    words = refusal(furnished)
    assert "gave an invalid answer" in words
    assert "Smith" not in words


def test_a_message_that_would_take_many_times_its_memory_is_not_read() -> None:
    with pytest.raises(BadFrame, match="length"):
        frames.unpacked(frames.packed(b" " * (frames.MOST_MESSAGE + 1), {}))


def test_lengths_that_add_up_only_by_overflow_are_none() -> None:
    lengths = np.array([1 << 62] * 4 + [3], np.int64)
    with pytest.raises(BadFrame, match="lengths"):
        frames.texts_unpacked("cells", {"cells_text": np.frombuffer(b"abc", np.uint8), "cells_lengths": lengths})


def test_memory_is_limited(furnished: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limited = SandboxConfig(limits=confine.WorkerLimits(memory=512 * confine.MIB))
    large = tmp_path / "table.csv"
    with large.open("wb") as file:
        file.truncate(768 * confine.MIB)
    with Apart(limited, "data.reading_child", remedy="make it smaller") as process, large.open("rb") as content:
        with pytest.raises(ApartFailed, match="needs more than the 536870912 bytes"):
            process.ask("table", reading.ReadMock(file="table.csv"), reading.MockSeen, content)


def test_it_ends_when_the_datasite_is_killed(furnished: Home) -> None:
    code = f"""
import time
from pathlib import Path
from datasites.hospital.config import Home
from datasites.hospital.data.reading import TableReader
reader = TableReader(Home.open(Path({str(furnished.root)!r})))
print(reader._apart._process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as datasite:
        assert datasite.stdout is not None
        both = list(processes.family(int(datasite.stdout.readline())))
        assert len(both) > 1
        datasite.kill()
    until(lambda: not any(map(alive, both)))


def test_where_none_can_be_started_whoever_asks_is_told(furnished: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, remedy: str) -> None:
        raise ApartFailed("no process was started to work in: none left; free some")

    monkeypatch.setattr(process, "Apart", none)
    with TableReader(furnished) as reader, pytest.raises(DatasitesError, match="none left; free some"):
        reader.rows(furnished.dataset("heart"))


@pytest.mark.slow
def test_what_is_priced_apart_is_what_is_priced_here(furnished: Home) -> None:
    study = StudyPackage.read(HEART / "study").study
    limits = HospitalLimits(2.0, 1e-5, 0.25)
    here = plan_of(study, limits)
    assert accounting.plans_of(furnished, study, limits) == (here.training, here.evaluation)
    apart_, event = accounting.PricesApart(furnished), here.training.event()
    for prices in (Prices(), apart_):
        assert prices.pld([event], 1e-5) == here.prices.pld([event], 1e-5)
        assert prices.rdp([event], 1e-5) == here.prices.rdp([event], 1e-5)
        assert prices.at_order([event], 16, 1e-5) == here.prices.at_order([event], 16, 1e-5)


def test_a_plan_that_nothing_fits_is_refused_as_it_is_here(furnished: Home) -> None:
    study = StudyPackage.read(HEART / "study").study
    with pytest.raises(PlanError, match="no noise"):
        accounting.plans_of(furnished, study, HospitalLimits(1e-9, 1e-12, 0.25))


def test_an_accountant_that_nobody_asks_again_ends(furnished: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_LINGERS", 0.1)
    accountant = accounting._Accountant(furnished.settings.sandbox)
    what = PriceRequest(method="rdp", of=release(1.0), at=1e-5)
    first = accountant.ask("price", what, Priced)
    until(lambda: accountant._apart is None)
    assert accountant.ask("price", what, Priced) == first, "and another is started"
    until(lambda: accountant._apart is None)
