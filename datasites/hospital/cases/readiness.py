"""Whether a dataset is ready for a study, and what its records mean for patients' privacy; for the hospital's eyes."""

from __future__ import annotations

from dataclasses import dataclass

from datasites.hospital.budget.accounting import PricesApart
from datasites.hospital.budget.population import charges_both_sides
from datasites.hospital.cases.case import site_plan
from datasites.hospital.config import Home
from datasites.hospital.data.answers import answer, named, unanswered
from datasites.hospital.data.findings import TableFinding
from datasites.hospital.data.mapping import FeatureReadiness, Mapping, read_mapping
from datasites.hospital.data.reading import TableReader
from datasites.hospital.data.reading_messages import TableSummary
from datasites.hospital.people.accounts import Actor
from datasites.hospital.site import Site
from datasites.study.package import StudyPackage
from datasites.study.schema import DataModel


@dataclass(frozen=True)
class Readiness:
    """One line per feature, and how records spread over patients.

    epsilon: what the study would cost a patient. epsilon_by_record: an upper bound on what it would cost the patient
    with most records if each record were treated as a patient of its own, as without a patient column it is.
    surplus: what to do where there are more records than declared, else "". read: rows of the table; empty: lines or
    rows that hold nothing and are left out; rows: those that are kept. findings: see `plausible`; unanswered: by name,
    those that block.
    """

    read: int
    empty: int
    rows: int
    features: tuple[FeatureReadiness, ...]
    has_patient_column: bool
    patients: int
    most_records: int
    epsilon: float
    epsilon_by_record: float
    delta: float
    surplus: str
    declared: int
    findings: tuple[TableFinding, ...]
    unanswered: frozenset[str]

    @property
    def ready(self) -> bool:
        """Say whether every feature is, and people have answered what is to be looked at."""
        return all(feature.ready for feature in self.features) and not self.unanswered

    def rows_in_words(self) -> str:
        """Say what became of the table's rows."""
        left = [f"{self.empty} empty one(s)"] if self.empty else []
        if self.read > self.rows:
            left.append(f"{self.read - self.rows} without a label")
        patients = f"{self.patients} patients" if self.has_patient_column else "each counts as a patient"
        left_out = f" Left out: {', '.join(left)}." if left else ""
        return f"{self.rows} rows are kept ({patients}; {self.declared} patients are declared).{left_out}"

    def patients_in_words(self) -> str:
        """Say what a data steward must know about patients and records."""
        if not self.has_patient_column:
            return (
                "no patient column: each row counts as one patient, and all is charged to training and to held-out "
                "patients. If a patient can have several rows, or may withdraw, set `patient` in mapping.toml; else "
                "that patient loses more than the ledger says"
            )
        if self.most_records == 1:
            return f"{self.patients} patients with one record each; epsilon {self.epsilon:.2f} at delta {self.delta:g}"
        return (
            f"{self.patients} patients, at most {self.most_records} records each. Epsilon of the study is "
            f"{self.epsilon:.2f} at delta {self.delta:g} for a patient; treating each record as a patient would cost "
            f"the patient with most records up to {self.epsilon_by_record:.2f}"
        )


def _look(home: Home, name: str, model: DataModel) -> tuple[Mapping, TableSummary]:
    """Read dataset `name` for a study's data model; raises `InputError` for a table or mapping that can't be read."""
    dataset = home.dataset(name)
    mapping = read_mapping(home.root / dataset.mapping)
    with TableReader(home) as reader:
        return mapping, reader.look(dataset, mapping, model)


def check_dataset(home: Home, name: str, package: StudyPackage) -> Readiness:
    """Check dataset `name` against a study; raises `InputError` for a table, mapping or study that can't be read."""
    dataset, model = home.dataset(name), package.data_model
    mapping, seen = _look(home, name, model)
    both_sides = charges_both_sides(dataset.population, mapping.patient or "")
    plan = site_plan(package.study, dataset, both_sides=both_sides).training
    delta, prices = package.study.privacy.delta, PricesApart(home)
    return Readiness(
        read=seen.rows,
        empty=seen.empty,
        rows=seen.kept,
        features=seen.features,
        has_patient_column=mapping.patient is not None,
        patients=seen.patients,
        most_records=seen.most_records,
        epsilon=prices.pld([plan.event()], delta),
        epsilon_by_record=prices.pld([plan.event_if_records_were_patients(seen.most_records)], delta),
        delta=delta,
        surplus=dataset.surplus_in_words(seen.kept),
        declared=dataset.declared_patients,
        findings=seen.findings,
        unanswered=frozenset(finding.name for finding in unanswered(home, name, seen.findings, model)),
    )


def accept(
    site: Site, person: Actor, name: str, package: StudyPackage, finding: str, reason: str, *, holds: bool = True
) -> TableFinding:
    """Answer a finding that the table has now for this study; raises as a reader and `answer` do."""
    model = package.data_model
    found = named(_look(site.home, name, model)[1].findings, finding)
    answer(site, person, name, found, model, reason, holds=holds)
    return found
