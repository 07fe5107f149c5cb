"""What is in force was entered by one person and confirmed by another; what is wrong enters nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.registry import Registry, RegistryFile
from tests.agreements import agreements
from tests.cli.command_line import CommandLine
from tests.hospital.conftest import HEART

IDS = ("baa-storage", "baa-university", "irb")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three agreements of this hospital."""
    path = tmp_path / "agreements.toml"
    path.write_text(agreements("Cleveland", ["age"]))
    return path


def registry(datasites: CommandLine) -> Registry:
    return RegistryFile(datasites.home.registry, "Cleveland").load()


def states(datasites: CommandLine) -> dict[str, str]:
    """What `agreements list` says of each."""
    rows = (line.split() for line in datasites.does("agreements", "list").lines)
    return {row[0]: " ".join(row[row.index("2099-12-31") + 1 :]) for row in rows if "2099-12-31" in row}


def test_an_agreement_counts_once_a_second_person_has_confirmed_it(datasites: CommandLine, file: Path) -> None:
    done = datasites.does("agreements", "import", file, by="ann")
    assert sorted(done.lines) == [f"{id} version 1: entered; a second person confirms it" for id in IDS]
    assert [record["agreement"] for record in datasites.logged("agreement_entered")] == list(IDS)
    assert states(datasites) == dict.fromkeys(IDS, "unconfirmed")
    assert "ann" in datasites.refuses("agreements", "confirm", "irb", 1, by="ann"), "who entered it does not confirm it"
    datasites.does("agreements", "confirm", "irb", 1, by="bob")
    assert states(datasites) == {"baa-storage": "unconfirmed", "baa-university": "unconfirmed", "irb": "in force"}
    (record,) = datasites.logged("agreement_confirmed")
    assert {"agreement": "irb", "version": 1, "person": "bob"}.items() <= record.items()
    latest = registry(datasites).latest("irb")
    assert (latest.entered_by, latest.confirmed_by) == ("ann", "bob")


def test_one_person_ends_an_agreement(datasites: CommandLine, file: Path) -> None:
    datasites.does("agreements", "import", file, by="ann")
    datasites.does("agreements", "confirm", "irb", 1, by="bob")
    assert datasites.does("agreements", "terminate", "irb", by="ann").printed == "irb: terminated"
    assert "in force" not in states(datasites).values()
    assert datasites.logged("agreement_terminated") == [{"agreement": "irb", "person": "ann"}]


def wrong(path: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text()
    yield "not = [toml", "TOML"
    yield text.replace('kind = "irb"', 'kind = "promise"'), "kind"
    yield text.replace("2026-01-01", "2100-01-01", 1), "expires"
    yield text.replace("[[agreement]]", "[[agrement]]"), "agrement"


def test_a_file_with_one_wrong_agreement_enters_none(datasites: CommandLine, file: Path) -> None:
    for text, words in list(wrong(file)):
        file.write_text(text)
        assert words in datasites.refuses("agreements", "import", file, by="ann")
    file.write_bytes(b"\xff")
    assert "save it as UTF-8" in datasites.refuses("agreements", "import", file, by="ann")
    file.unlink()
    assert f"{file}: cannot be read" in datasites.refuses("agreements", "import", file, by="ann")
    assert f"{file.parent}: cannot be read" in datasites.refuses("agreements", "import", file.parent, by="ann")


def test_what_was_not_entered_is_not_confirmed_and_not_ended(datasites: CommandLine, file: Path) -> None:
    datasites.does("agreements", "import", file, by="ann")
    for line in (("confirm", "irb", 2), ("confirm", "another", 1), ("terminate", "another")):
        assert line[1] in datasites.refuses("agreements", *line, by="bob")
    datasites.does("agreements", "confirm", "irb", 1, by="bob")
    assert "irb" in datasites.refuses("agreements", "confirm", "irb", 1, by="cyd"), "once is enough"


def test_what_a_file_would_change_is_shown_and_nothing_is_entered(datasites: CommandLine, file: Path) -> None:
    datasites.does("agreements", "import", file, by="ann")
    datasites.does("agreements", "confirm", "baa-storage", 1, by="bob")
    file.write_text(file.read_text().replace('services = ["transport"]', 'services = ["transport", "aggregation"]'))
    before = registry(datasites)
    shown = datasites.does("agreements", "preview", file).printed
    assert "baa-storage version 2, unconfirmed: differs from version 1" in shown
    assert "Services: transport -> aggregation, transport" in shown
    assert registry(datasites) == before
    datasites.does("agreements", "import", file, by="ann")
    shown = datasites.does("agreements", "show", "baa-storage").printed
    assert "version 1: in force; entered by ann" in shown
    assert "version 2: unconfirmed" in shown
    assert "Services: transport -> aggregation, transport" in shown
    assert "there is nothing to enter" in datasites.does("agreements", "preview", file).printed
    file.write_text("not = [toml")
    assert "TOML" in datasites.refuses("agreements", "preview", file)
    assert "known: baa-storage" in datasites.refuses("agreements", "show", "another")


def test_a_document_that_is_another_one_is_not_confirmed(datasites: CommandLine, file: Path, tmp_path: Path) -> None:
    signed, other = tmp_path / "signed.pdf", tmp_path / "other.pdf"
    signed.write_bytes(b"signed")
    other.write_bytes(b"a draft")
    file.write_text(file.read_text().replace("ab" * 32, hashlib.sha256(b"signed").hexdigest()))
    datasites.does("agreements", "import", file, by="ann")
    confirm = ("agreements", "confirm", "irb", 1, "--document")
    assert "from another document" in datasites.refuses(*confirm, other, by="bob")
    assert "cannot be read" in datasites.refuses(*confirm, tmp_path / "missing", by="bob")
    datasites.does(*confirm, signed, by="bob")
    assert states(datasites)["irb"] == "in force"


def test_an_agreement_on_which_no_study_rests_is_called_unused(datasites: CommandLine, file: Path) -> None:
    file.write_text(file.read_text().replace("IRB-2026-017", "IRB-OTHER").replace("Storage Provider", "Somebody"))
    datasites.does("agreements", "import", file, by="ann")
    for id in IDS:
        datasites.does("agreements", "confirm", id, 1, by="bob")
    rows = {line.split()[0]: line for line in datasites.does("agreements", "list").lines if line.split()}
    assert {id: "unused" in rows[id] for id in IDS} == {"baa-storage": True, "baa-university": False, "irb": True}
    assert "Unused" in datasites.does("agreements", "show", "irb").printed
    shown = datasites.does("agreements", "show", "baa-university").printed
    assert "University may no longer run aggregation, model_distribution" in shown


@pytest.mark.parametrize("document", ["baa_schedule", "irb_section", "data_protection_summary"])
def test_a_document_is_drafted_from_the_study_and_changes_nothing(datasites: CommandLine, document: str) -> None:
    before = datasites.home.audit.read_bytes()
    draft = datasites.does("agreements", "draft", document, "--study", HEART / "study").printed
    assert "Coronary artery disease" in draft
    assert datasites.home.audit.read_bytes() == before


def test_a_document_of_which_there_is_no_template_is_named(datasites: CommandLine, tmp_path: Path) -> None:
    refused = datasites.refuses("agreements", "draft", "contract", "--study", HEART / "study")
    assert "contract" in refused
    assert "baa_schedule" in refused
    missing = tmp_path / "missing"
    assert f"{missing}" in datasites.refuses("agreements", "draft", "irb_section", "--study", missing)
