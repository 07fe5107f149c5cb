"""Figures that are kept: each counts for exactly what it was worked out of, and only as it was worked out here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.budget import price_cache
from datasites.hospital.budget.accounting import PricesApart
from datasites.hospital.budget.price_cache import KeptPrices
from datasites.hospital.config import Home
from datasites.privacy import accountant
from datasites.privacy.events import Event, release

STUDY = release(2.5545, 0.3, 30)


@pytest.fixture
def worked_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Event]]:
    """What the accountant was asked for, of a home that keeps nothing yet."""
    shutil.rmtree(home.figures, ignore_errors=True)
    asked: list[Event] = []
    for name, figure in (("pld", accountant.epsilon_pld), ("rdp", accountant.epsilon_rdp)):

        def noted(self: object, events: list[Event], delta: float, figure: Callable = figure) -> float:
            asked.extend(events)
            return float(figure(events, delta))

        monkeypatch.setattr(PricesApart, name, noted)
    yield asked
    shutil.rmtree(home.figures, ignore_errors=True)


def only_file(home: Home) -> Path:
    (path,) = home.figures.iterdir()
    return path


def test_a_figure_is_worked_out_once(home: Home, worked_out: list[Event]) -> None:
    first = KeptPrices(home).pld([STUDY], 1e-5)
    assert first == accountant.epsilon_pld([STUDY], 1e-5)
    assert KeptPrices(home).pld([release(2.5545, 0.3, 10), release(2.5545, 0.3, 20)], 1e-5) == first, "the same events"
    assert worked_out == [STUDY]
    assert only_file(home).stat().st_mode & 0o077 == 0 or only_file(home).parent.stat().st_mode & 0o077 == 0


def test_a_figure_counts_for_nothing_else(home: Home, worked_out: list[Event]) -> None:
    first = KeptPrices(home).pld([STUDY], 1e-5)
    for events, delta in (([STUDY, STUDY], 1e-5), ([STUDY], 1e-6), ([release(2.5546, 0.3, 30)], 1e-5), ([], 1e-5)):
        assert KeptPrices(home).pld(events, delta) == accountant.epsilon_pld(events, delta) != first
    assert KeptPrices(home).rdp([STUDY], 1e-5) == accountant.epsilon_rdp([STUDY], 1e-5) != first


def test_another_accountant_works_it_out_anew(
    home: Home, worked_out: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    KeptPrices(home).pld([STUDY], 1e-5)
    monkeypatch.setattr(price_cache, "_accountant", lambda: "another one")
    KeptPrices(home).pld([STUDY], 1e-5)
    assert worked_out == [STUDY, STUDY]


_LOADS = (
    "import sys, datasites.privacy.accountant; print(*(n for n in sys.modules if n.startswith('datasites.privacy.')))"
)


def test_all_that_the_accountant_works_with_says_which_one_it_is(
    home: Home, worked_out: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run([sys.executable, "-c", _LOADS], capture_output=True, text=True, check=True)
    assert {f"{name.rpartition('.')[2]}.py" for name in done.stdout.split()} == set(price_cache.SOURCES)
    before, read = price_cache._accountant(), Path.read_bytes
    for changed in price_cache.SOURCES:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda path, name=changed: read(path) + b"#" * (path.name == name))
            price_cache._accountant.cache_clear()
            assert price_cache._accountant() != before
    price_cache._accountant.cache_clear()


def _lower(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "value": 0.1}))


def _of_another(path: Path) -> None:
    """A true figure, of another study, in this one's place."""
    home = price_cache.this_home()
    KeptPrices(home).pld([release(40.0)], 1e-5)
    (other,) = set(home.figures.iterdir()) - {path}
    other.replace(path)


@pytest.mark.parametrize(
    "tamper",
    [
        _lower,
        _of_another,
        lambda path: path.write_bytes(b"{}"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b'{"bound": "", "value": 1' + b"0" * 400 + b"}"),
        Path.unlink,
    ],
)
def test_a_figure_that_was_not_worked_out_here_counts_as_none(
    home: Home, worked_out: list[Event], tamper: Callable[[Path], None]
) -> None:
    first = KeptPrices(home).pld([STUDY], 1e-5)
    tamper(only_file(home))
    worked_out.clear()
    assert KeptPrices(home).pld([STUDY], 1e-5) == first
    assert worked_out == [STUDY]
    assert KeptPrices(home).pld([STUDY], 1e-5) == first
    assert worked_out == [STUDY], "and kept anew"


def test_what_can_t_be_kept_is_worked_out_each_time(home: Home, worked_out: list[Event]) -> None:
    home.figures.write_bytes(b"no folder")
    try:
        assert KeptPrices(home).pld([STUDY], 1e-5) == KeptPrices(home).pld([STUDY], 1e-5)
    finally:
        home.figures.unlink()
    assert worked_out == [STUDY, STUDY]


def test_a_damaged_key_keeps_nobody_from_a_price(home: Home, worked_out: list[Event]) -> None:
    Commitments(home)
    key = home.commitment_key.read_bytes()
    first = KeptPrices(home).pld([STUDY], 1e-5)
    home.commitment_key.write_bytes(key[:-1])
    try:
        assert KeptPrices(home).pld([STUDY], 1e-5) == first
    finally:
        home.commitment_key.write_bytes(key)
    assert worked_out == [STUDY, STUDY]
