"""What leaves confirms no guess at a patient (I16): commitments are keyed, and the log is the same for any rows."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.cases import examination
from datasites.hospital.cases.case import open_case, records_folder
from datasites.hospital.cases.encoded import PREPARED_FILE
from datasites.hospital.cases.freeze import ApprovalTerms
from datasites.hospital.config import Home
from datasites.hospital.data.records import records_digest
from datasites.hospital.models import Case
from datasites.study.audit_chain import records
from datasites.study.errors import InputError
from tests.hospital.desk import Desk, job, without_rehearsal

Version = Callable[[str, bytes], str]


def guesses(home: Home, row: Case) -> Iterator[tuple[tuple[float, float], str]]:
    """Ages and sexes that the first patient may have, each with the digest of the records if it were so.

    The attacker knows the study, the code of this project, and every other number of the table.
    """
    model = open_case(home, row).package.data_model
    with np.load(records_folder(home, row.study_hash) / PREPARED_FILE) as stored:
        arrays = {name: stored[name] for name in ("x", "y", "patient")}
    age, sex = model.columns.index("age"), model.columns.index("sex")
    truth = arrays["x"][0, [age, sex]].copy()
    for years in range(-3, 4):
        for other in (False, True):
            guess = (float(truth[0] + np.float32(years / 8)), float(-truth[1] if other else truth[1]))
            arrays["x"][0, [age, sex]] = guess
            yield (float(guess[0] - truth[0]), float(guess[1] - truth[1])), records_digest(model, arrays)


def confirmed(home: Home, row: Case, version: Version) -> list[tuple[float, float]]:
    """Guesses (distance to the truth) for which the approval hash that left comes out."""
    approval_terms = ApprovalTerms.model_validate(row.approval_terms)
    return [
        guess
        for guess, digest in guesses(home, row)
        if approval_terms.model_copy(update={"data_version": version(digest, bytes.fromhex(digest))}).digest()
        == row.approval_hash
    ]


def keyed(key: bytes, label: str) -> Version:
    framed = len(label.encode()).to_bytes(8, "big") + label.encode()
    return lambda _, data: hmac.digest(key, framed + data, "sha256").hex()


def test_the_approval_hash_confirms_no_guess_at_a_patient(desk: Desk) -> None:
    """It was an unkeyed digest of the records once, and the first line found the patient."""
    home, row = desk.site.home, desk.row
    label = f"data version of study {row.study_hash}"
    assert confirmed(home, row, lambda digest, _: digest) == []
    assert confirmed(home, row, lambda _, data: hashlib.sha256(data).hexdigest()) == []
    for key in (b"", bytes(32), row.study_hash.encode(), bytes.fromhex(row.study_hash)):
        assert confirmed(home, row, keyed(key, label)) == []
    # The search itself is right: with the key it finds the one patient.
    assert confirmed(home, row, keyed(home.commitment_key.read_bytes(), label)) == [(0.0, 0.0)]


def test_a_commitment_depends_on_home_label_and_data(furnished: Home, tmp_path: Path) -> None:
    commitments = Commitments(furnished)
    assert commitments.commit("a", b"b") == Commitments(furnished).commit("a", b"b")
    other = Commitments(dataclasses.replace(furnished, root=tmp_path))
    made = {
        c.commit(label, data) for c in (commitments, other) for label, data in (("a", b"b"), ("ab", b""), ("", b"ab"))
    }
    assert len(made) == 6
    assert (tmp_path / "keys" / "commitment.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["commitment.key"]


def test_the_key_and_its_name_are_on_the_disk(furnished: Home, tmp_path: Path, synced: list[str]) -> None:
    """No study that was approved would run on after a power cut, had it lost the name."""
    home = dataclasses.replace(furnished, root=tmp_path)
    Commitments(home)
    assert Path(synced[0]).name.startswith(".commitment.key.")
    assert synced[1:] == [str(tmp_path / "keys")] * 2, "before and after it has its own name"


def test_a_damaged_key_is_named_and_not_replaced(furnished: Home, tmp_path: Path) -> None:
    home = dataclasses.replace(furnished, root=tmp_path)
    Commitments(home)
    os.truncate(home.commitment_key, 31)
    with pytest.raises(InputError, match="restore it from the backup"):
        Commitments(home)
    assert home.commitment_key.stat().st_size == 31


def test_the_log_is_the_same_whether_the_records_fit_or_not(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ready or not is for people here; heads of the log leave with the releases of other studies."""
    logged = []
    mapping = desk.site.home.root / "mapping.toml"
    kept = mapping.read_text()
    without_rehearsal(monkeypatch)
    Case.objects.all().delete()
    try:
        for text, state in ((kept, Case.State.REVIEW), (kept.replace("Male = 1, ", ""), Case.State.INTAKE)):
            mapping.write_text(text)
            begins = desk.site.audit.head().seq
            row = examination.admit(desk.site, job())
            assert row.state == state, row.note
            assert (state == Case.State.REVIEW) == bool(row.approval_terms)
            written = [r for r in records(desk.site.home.audit) if r.seq > begins]
            volatile = {"case", "digest", "token"}
            logged.append([(r.kind, {k: v for k, v in r.fields.items() if k not in volatile}) for r in written])
            row.decisions.all().delete()
            row.delete()
    finally:
        mapping.write_text(kept)
    assert [kind for kind, _ in logged[0]] == ["received", "patients_kept", "decision", "examined"]
    assert logged[0] == logged[1]
