"""A patient's withdrawal of consent, as people enter it: they see where the name is found; an unknown is refused."""

from __future__ import annotations

import time
from dataclasses import dataclass

from datasites.hospital.budget.ledger_log import WITHDRAWN
from datasites.hospital.cases.whereabouts import Place, look_for, looking_ticks, names_patients
from datasites.hospital.data import withdrawal
from datasites.hospital.people.accounts import REVIEWERS, Actor, require_reviewer
from datasites.hospital.site import Site
from datasites.hospital.ticks import sleep_to_tick
from datasites.study.errors import InputError


class NobodyToLeaveOut(InputError):
    """No record is under that name, or no column says whose a record is; nothing was entered."""


class OtherSpellings(InputError):
    """Records are under names that may be the same patient's; nothing was entered before people say whether."""


@dataclass(frozen=True)
class Withdrawal:
    """A withdrawal that was entered. patients: that have withdrawn by now; places: that were looked at before."""

    patients: int
    places: tuple[Place, ...]
    all_spellings: bool

    def in_words(self) -> list[str]:
        """Return what the withdrawal does in each place."""
        return [place.in_words(all_spellings=self.all_spellings) for place in self.places]


def withdraw(
    site: Site,
    person: Actor,
    dataset: str,
    patient: str,
    reason: str,
    *,
    all_spellings: bool | None = None,
    for_later: bool = False,
) -> Withdrawal:
    """Enter a patient's withdrawal of consent (see `withdrawal`).

    all_spellings: whether names that differ in spelling alone are this patient's, too; people must say so where there
    are any now, and in later tables they are unless people have said that they are not. for_later: enter it though
    nobody is found, for tables to come. Raises `ReviewError` for a person who may not, `InputError` for an unknown
    dataset, `OtherSpellings`, or `NobodyToLeaveOut`; nothing is entered then.
    """
    require_reviewer(person, f"withdrawals are entered by {' or '.join(REVIEWERS)}")
    by: dict[str, str] = {"person": person.name, "role": person.role, "reason": reason}
    site.audit.require_fit(WITHDRAWN, dataset=dataset, **by)
    from datasites.hospital.data.reading import TableReader

    alike = all_spellings is not False
    entry, exact = (withdrawal.entry_of(patient, all_spellings=each) for each in (alike, False))
    with TableReader(site.home) as reader:
        started = time.monotonic()  # of what depends on rows, as the reader's start doesn't
        places = look_for(site.home, reader, dataset, patient)
    if not names_patients(places):
        raise NobodyToLeaveOut(
            f"dataset {dataset}: neither mapping.toml nor the records of an open case name patients, so no pseudonym "
            "says whose a row is and nobody can be left out by name; pause the studies that run on it, name the column "
            "(`patient = …`), or take the patient's rows out of the table, and ask for new submissions"
        )
    if all_spellings is None and (spellings := max(place.spellings for place in places)):
        raise OtherSpellings(
            f"nothing was entered: up to {spellings} other spelling(s) of that name stand in "
            f"{', '.join(place.name for place in places if place.spellings)} (capitals, spaces or invisible "
            "characters, composed letters, or another form of a number); --all-spellings leaves all of them out, "
            "--this-spelling leaves out only the one that you gave"
        )
    found = any(place.left_out(all_spellings=alike) for place in places)
    again = withdrawal.is_withdrawn(site.home, dataset, exact)
    if not (found or for_later or again or withdrawal.is_withdrawn(site.home, dataset, entry)):
        looked_in = "; ".join(place.in_words(all_spellings=alike) for place in places)
        raise NobodyToLeaveOut(
            f"nothing was entered, since nobody was found under that name ({looked_in}). Compare it with the source, "
            "letter by letter and zero by zero; for a patient who may appear in a later table, add --for-later"
        )
    # What is entered shows in the log and in when a worker starts; how long it took to look must not.
    sleep_to_tick(started, looking_ticks(site.home), lambda: None)
    # The name alone once more, too, where it was entered so: the list may have lost it.
    entries = sorted({entry, exact}) if again else [entry]
    number = max(withdrawal.enter(site, dataset, one, **by) for one in entries)
    return Withdrawal(number, places, alike)
