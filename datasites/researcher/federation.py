"""A researcher's home: identity, pinned roster, peers; mock data, submissions and their state; and how runs start."""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field, ValidationError
from tqdm.auto import tqdm

from datasites.aggregator.run import ROUND_TIMEOUT, SETUP_PATIENCE, Run
from datasites.control.syft import JobDecision, ResearcherControl
from datasites.enclave.sandbox import Sandbox
from datasites.researcher.beforehand import FirstModel, Model
from datasites.researcher.study import Study
from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError, InputError, describe_validation
from datasites.study.files import move_durably, replace_durably
from datasites.study.holding import Hold, hold
from datasites.study.identity import Email, Identity, same_identity
from datasites.study.roster import HandOver, Roster, RosterEntry
from datasites.transport.mailroom import Mailroom
from datasites.transport.repeats import Repeats
from datasites.transport.store import WHOLE_STORE, Store

CONFIG_FILE = "researcher.json"
KEY_FILE = "keys/institution.pem"
#: While a key is handed over: the next one before it is in force, and the one before, which signs for it.
NEXT_KEY_FILE, OLD_KEY_FILE = "keys/institution-next.pem", "keys/institution-before.pem"
ENTRY_FILE, HAND_OVER_FILE = "roster-entry.json", "hand-over.json"
#: States of a submission on which nobody has decided, and those of a hospital that will take no part any more.
UNDECIDED, OUT = ("not submitted", "submitted", "received", "pending"), ("rejected", "revoked")
#: States of one that takes part.
APPROVED = ("approved", "done")
#: Seconds after which a study is sent again to a hospital that has not decided: at first, and at most.
REMINDERS = 60.0, 3600.0

log = logging.getLogger(__name__)


class ResearcherSettings(Agreed):
    """`researcher.json`."""

    organisation: Annotated[str, Field(min_length=1, max_length=120)]
    email: Email
    store: Annotated[str, Field(repr=False)]


class NotApproved(DatasitesError):
    """Too few hospitals have approved a study."""


class Incomplete(DatasitesError):
    """Something was done with all hospitals but those that the message names, each with the reason."""


def _for_each(what: str, emails: Iterable[str], act: Callable[[str], None]) -> None:
    """Call `act` for each hospital; raises `Incomplete` at the end for those for which it failed."""
    failed = {}
    for email in emails:
        try:
            act(email)
        except WHOLE_STORE:
            raise
        except DatasitesError as error:
            failed[email] = error
    if failed:
        errors = "; ".join(f"{email}: {error}" for email, error in failed.items())
        raise Incomplete(f"not all hospitals were {what}, repeat it once this is resolved: {errors}")


def _too_few(study: Study, states: Mapping[str, str]) -> str:
    """In words, that a study has lost too many hospitals to be run; "" where it hasn't. states: by e-mail."""
    out = [f"{email} ({state})" for email, state in states.items() if state in OUT]
    left, needed = len(states) - len(out), study.terms.cohort.survivors_needed
    if left >= needed:
        return ""
    return (
        f"study {study.terms.name}: {', '.join(out)}: {left} hospital(s) can still take part and the threshold is "
        f"{needed}, so it can no longer be run; close it with Federation.end, and submit one with another cohort"
    )


def _held(home: Path) -> Hold:
    return hold(
        home / "lock",
        f"{home}: this researcher's home is open already",
        "go on there, or close it there (`Federation.close`, or end that notebook's kernel) and try again",
    )


def _handed_over(old: Identity, new: Identity, entry: RosterEntry) -> HandOver:
    """From this entry to the same one with the new key: what the pinned one says else stays as it was compared."""
    return HandOver.sign(old, new, entry, entry.model_copy(update={"public_key": new.public_key}))


@dataclass(frozen=True)
class HospitalState:
    """Where a submission stands at one hospital, as it last said (`JobDecision`).

    `reason` holds the approved hash, or why not.
    """

    email: str
    organisation: str
    state: str
    reason: str


class Federation:
    """One researcher and the hospitals that they have pinned. Use as a context manager, or `close` it.

    One at a time has a home (`holding`): another, in whatever process, is told who has it.
    """

    def __init__(self, home: Path, settings: ResearcherSettings, identity: Identity, held: Hold) -> None:
        self.home, self.settings, self.identity, self._held = home, settings, identity, held
        self.roster = Roster.load(home / "roster.json")
        self.store = Store(settings.store)
        self._control = ResearcherControl.open(
            settings.email, home / "syftbox", self.store, home / "transport", self.roster
        )
        self.mailroom = Mailroom(
            settings.email, self.store, self._control.sealer(), home / "transport" / "mail", durable=True
        )
        #: By study, over all calls of `wait`: what each message costs is kept for good at both sides (`synclog`).
        self._reminders: dict[str, Repeats] = {}
        #: By study, of those that were submitted here and have not been run yet.
        self._first_models: dict[str, FirstModel] = {}

    @classmethod
    def create(cls, home: str | Path, *, organisation: str, email: str, store: str) -> Federation:
        """Make a researcher's home with a new identity; raises `InputError` when one is there.

        When it fails (the store can't be used, say), it may be called again for the same home and e-mail.
        """
        home = Path(home).resolve()
        try:
            settings = ResearcherSettings(organisation=organisation, email=email, store=store)
        except ValidationError as error:
            raise InputError(f"researcher's home: {describe_validation(error)}") from error
        held = _held(home)
        try:
            if (home / CONFIG_FILE).exists():
                raise InputError(f"{home}: a researcher's home is here already; use Federation.open")
            if not (home / KEY_FILE).exists():
                Identity.generate(email).save(home / KEY_FILE, os.environ.get("DATASITES_PASSPHRASE"))
            federation = cls(home, settings, cls._identity(home, email), held)
            federation.pin(federation.entry)
            replace_durably(home / ENTRY_FILE, federation.entry.canonical())
            replace_durably(home / CONFIG_FILE, settings.canonical())  # last: with it, the home is made
        except BaseException:
            held.release()
            raise
        return federation

    @staticmethod
    def _identity(home: Path, email: str, file: str = KEY_FILE) -> Identity:
        return Identity.load(home / file, email, os.environ.get("DATASITES_PASSPHRASE"))

    @classmethod
    def open(cls, home: str | Path) -> Federation:
        """Open a home made with `create`; raises `Held` where it is open, `InputError` or `IdentityError`."""
        home = Path(home).resolve()
        try:
            settings = ResearcherSettings.model_validate_json((home / CONFIG_FILE).read_bytes())  # people edit it
        except FileNotFoundError as error:
            raise InputError(f"{home}: no researcher's home; make one with Federation.create") from error
        except ValidationError as error:
            raise InputError(f"{home / CONFIG_FILE}: {describe_validation(error)}") from error
        held = _held(home)
        try:
            federation = cls(home, settings, cls._identity(home, settings.email), held)
            federation._announce_key()
        except BaseException:
            held.release()
            raise
        return federation

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the store, the journals and the home."""
        for model in self._first_models.values():
            model.close()
        try:
            self.mailroom.close()
            self._control.close()
        finally:
            self._held.release()

    @property
    def entry(self) -> RosterEntry:
        """Return this researcher's roster entry, to give to the hospitals."""
        return RosterEntry(
            organisation=self.settings.organisation,
            email=self.settings.email,
            role="researcher",
            public_key=self.identity.public_key,
            syft_fingerprint=self._control.syft_fingerprint(),
        )

    def pin(self, *entries: RosterEntry) -> None:
        """Trust these parties from now on, after comparing their fingerprints by another channel (I9)."""
        roster = self.roster
        for entry in entries:
            roster = roster.pin(entry)
        self._pin(roster)

    def _pin(self, roster: Roster) -> None:
        roster.save(self.home / "roster.json")
        self.roster = roster
        self._control.pin(roster)

    def hand_over(self) -> Path:
        """Change this researcher's key; return `hand-over.json`, for every hospital that has pinned the old one.

        It is signed by both keys, so no fingerprints are compared: `datasites roster hand-over` at the hospital. Each
        hospital that has accepted it takes part again in a study that runs, by a new epoch, once the study is taken up
        again (`start`, `run`); a `Run` that was made before goes on with the old key, and is refused. Parties that pin
        this researcher later get `roster-entry.json`, which is new as well. Only the institution's key changes; those
        of syft stay. The old key is kept aside until `forget_old_key`, and until then there is no further hand-over.

        Not for a key that was stolen or lost: whoever has it could hand over, too. Then hospitals revoke it, and a new
        home's entry is pinned after comparing fingerprints. Nor for hospitals, whose logs are signed by their keys
        (`HandOver`).

        Killed anywhere, the home has one key that is in force and the files that belong to it, at the latest once it is
        opened again: the old one, and nothing has happened, or the new one.
        """
        self._announce_key()
        mine, before = self.roster.get(self.settings.email), self.home / OLD_KEY_FILE
        if before.exists() and self._old_key().public_key != self.identity.public_key:
            raise InputError(
                f"{before}: the key before this one is kept there; once every hospital has accepted {HAND_OVER_FILE}, "
                "call Federation.forget_old_key and hand over again"
            )
        following = self.home / NEXT_KEY_FILE
        following.unlink(missing_ok=True)  # of a hand-over that was interrupted, and never in force
        new = Identity.generate(self.settings.email)
        _handed_over(self.identity, new, mine).check(mine)
        new.save(following, os.environ.get("DATASITES_PASSPHRASE"))
        replace_durably(before, (self.home / KEY_FILE).read_bytes())
        move_durably(following, self.home / KEY_FILE)  # from here on the new key is in force
        self.identity = new
        self._announce_key()
        return self.home / HAND_OVER_FILE

    def _announce_key(self) -> None:
        """Write what tells others of the key that is in force, where the roster has the one before as our own."""
        mine = next((entry for entry in self.roster.entries if entry.email == self.settings.email), None)
        if mine is None or mine.public_key == self.identity.public_key or not (self.home / OLD_KEY_FILE).exists():
            return
        change = _handed_over(self._old_key(), self.identity, mine)
        replace_durably(self.home / HAND_OVER_FILE, change.canonical(), mode=0o666)
        replace_durably(self.home / ENTRY_FILE, change.entry.canonical(), mode=0o666)
        self._pin(self.roster.hand_over(change))  # last: until then, all of this is done again

    def _old_key(self) -> Identity:
        return self._identity(self.home, self.settings.email, OLD_KEY_FILE)

    def forget_old_key(self) -> None:
        """Delete the key before this one, once every hospital has accepted `hand-over.json`, which stays."""
        self._announce_key()
        (self.home / OLD_KEY_FILE).unlink(missing_ok=True)

    def accept_hand_over(self, path: str | Path) -> RosterEntry:
        """Pin the new key of a party that is pinned here, by its `hand-over.json`; returns its new entry.

        The pinned key signs for it, so whoever has stolen that could do the same: accept it from who has told you of a
        new key. Raises `InputError` for another file, `IdentityError` for one that the pinned key didn't sign, and for
        a hospital's, whose key is not handed over (`HandOver`).
        """
        try:
            change = HandOver.parse(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a hand-over; ask for the party's hand-over.json") from error
        if same_identity(change.entry.email, self.settings.email):
            raise InputError(f"{path}: belongs to this researcher itself; use Federation.hand_over")
        self._pin(self.roster.hand_over(change))
        return change.entry

    def connect(self) -> None:
        """Ask all pinned hospitals to be peers, and exchange what there is.

        One that can't be asked (an incomplete roster entry, say) is named by `Incomplete` after all others were.
        """
        _for_each("asked to be our peers", [entry.email for entry in self._hospitals()], self._control.add_hospital)
        self._control.sync_all()

    def sync(self) -> None:
        """Exchange messages with the hospitals through the store."""
        self._control.sync()

    def datasets(self) -> pd.DataFrame:
        """Return datasets that hospitals offer, with the mock's version; one row each."""
        self._control.sync_all()
        rows = [
            {"hospital": entry.organisation, "email": entry.email, "dataset": offered.name, "summary": offered.summary}
            for entry in self._hospitals()
            for offered in self._control.datasets(entry.email)
        ]
        return pd.DataFrame(rows, columns=["hospital", "email", "dataset", "summary"])

    def mock(self, email: str, dataset: str) -> pd.DataFrame:
        """Return a hospital's mock table, checked against the hospital's signature."""
        return pd.read_csv(io.BytesIO(self._control.mock(email, dataset)))

    def submit(self, study: Study) -> str:
        """Submit the study to every hospital of its cohort; returns the study hash. Safe to repeat.

        The model that it starts from is made meanwhile, and while people review.

        Raises `InputError` or `PlanError` for a study that any hospital would refuse, or that names one which isn't
        pinned here, and `SandboxUnavailable` where this machine can't build the study's model, before anything is sent.

        One that it can't be sent to (its keys aren't in the store yet, say) is named by `Incomplete` after it was sent
        to all others.
        """
        findings = study.check()
        if findings:
            first = findings[0]
            raise InputError(
                f"model.py line {first.line}: {first.reason} ({len(findings)} finding(s)); hospitals would refuse it, "
                "see `datasites study check`"
            )
        if study.terms.researcher != self.settings.email:
            raise InputError(f"study.toml: researcher is {study.terms.researcher}, you are {self.settings.email}")
        # A study that fits no plan would only wait at every hospital; the error names the figure that fits.
        study.plan()
        unknown = sorted(set(study.terms.cohort.hospitals) - {entry.email for entry in self._hospitals()})
        if unknown:
            raise InputError(
                f"study.toml: the cohort names {', '.join(unknown)}, which is not pinned here as a hospital; pin its "
                "roster entry, or correct the name; nothing was sent"
            )
        Sandbox().require()  # the run builds its first model in one
        if study.hash not in self._first_models and not self._folder(study).exists():
            self._first_models[study.hash] = FirstModel(study)
        hospitals, files = study.terms.cohort.hospitals, study.package.files
        _for_each("sent the study", hospitals, lambda email: self._control.submit(email, study.job_name, files))
        self._control.sync()
        return study.hash

    def states(self, study: Study) -> list[HospitalState]:
        """Where the study stands at each hospital of the cohort, after a sync; also one that is pinned no more."""
        names = {entry.email: entry.organisation for entry in self.roster.entries}
        return [
            HospitalState(email, names.get(email, email), decision.state, decision.reason)
            for email, decision in self._decisions(study).items()
        ]

    def wait(self, study: Study, timeout: float = 24 * 3600, *, progress: bool = True) -> list[HospitalState]:
        """Sleep until every hospital has decided, or `timeout` seconds are over; returns where each stands.

        Ends at once, with a warning, where fewer than the threshold can still take part, and raises `InputError` for a
        study that was submitted to nobody.

        To those that have not, the study is sent again now and then, as it was: the store may have lost it, or what the
        hospital said; each that has it already says again where it stands.
        """
        repeats = self._reminders.setdefault(study.job_name, Repeats(*REMINDERS))
        for email in study.terms.cohort.hospitals:
            repeats.begin((email, 0, study.job_name))
        deadline = time.monotonic() + timeout
        cohort = study.terms.cohort.hospitals
        with tqdm(total=len(cohort), desc="approvals", disable=not progress) as bar:
            while True:
                states = self.states(study)
                if all(state.state == "not submitted" for state in states):
                    raise InputError(f"study {study.terms.name}: was submitted to no hospital; use Federation.submit")
                decided = [state for state in states if state.state not in UNDECIDED]
                bar.n = len(decided)
                bar.set_postfix_str(", ".join(f"{s.organisation}: {s.state}" for s in states))
                bar.refresh()
                if lost := _too_few(study, {state.email: state.state for state in states}):
                    log.warning("%s", lost)
                    return states
                left = deadline - time.monotonic()
                if len(decided) == len(cohort) or left <= 0:
                    return states
                self._remind({email for email, *_ in repeats.due()} - {state.email for state in decided}, study)
                self.store.wait(self._control.folders(), min(left, 5.0))

    def _remind(self, emails: Iterable[str], study: Study) -> None:
        for email in sorted(emails):
            try:
                self._control.submit(email, study.job_name, study.package.files)
            except WHOLE_STORE:
                raise
            except DatasitesError as error:
                log.warning("%s is not sent the study again: %s", email, error)

    def run(
        self,
        study: Study,
        *,
        rounds: int | None = None,
        progress: bool = True,
        round_timeout: float = ROUND_TIMEOUT,
        setup_patience: float = SETUP_PATIENCE,
    ) -> Run:
        """Run the study to its end (or to round `rounds`) and return the finished or unfinished run.

        Goes on from where it was after a crash. Raises `NotApproved` when fewer hospitals than the threshold approved.
        The times are those of `start`.
        """
        run = self.start(study, round_timeout=round_timeout, setup_patience=setup_patience)
        run.complete(rounds=rounds, progress=progress)
        return run

    def start(
        self, study: Study, *, round_timeout: float = ROUND_TIMEOUT, setup_patience: float = SETUP_PATIENCE
    ) -> Run:
        """Return the run of a study, new or as it was left; nothing is sent before `complete` or `next_round`.

        round_timeout: seconds after which a round fails for which too few hospitals have answered. setup_patience:
        seconds for which certificates, and then readiness, of hospitals are waited for. More than 0, or `InputError`.
        """
        for name, seconds in (("round_timeout", round_timeout), ("setup_patience", setup_patience)):
            if not 0 < seconds < float("inf"):
                raise InputError(f"{name}: {seconds} seconds; give a number of seconds above 0")
        states = {email: decision.state for email, decision in self._decisions(study).items()}
        approved = [email for email, state in states.items() if state in APPROVED]
        needed = study.terms.cohort.survivors_needed
        if len(approved) < needed:
            raise NotApproved(
                _too_few(study, states)
                or f"study {study.terms.name}: {len(approved)} hospital(s) approved, the threshold is {needed}; "
                "wait for more with Federation.wait, or give it up with Federation.end"
            )
        return self._run(study, approved, round_timeout=round_timeout, setup_patience=setup_patience)

    def end(self, study: Study) -> Run:
        """Close a study as it stands, also where too few hospitals approve (`Run.close`); it can't be run after."""
        try:
            approved = self._approved(study)
        except WHOLE_STORE:
            raise
        except DatasitesError as error:
            log.warning("who has approved is not known, so nobody is waited for: %s", error)
            approved = []
        run = self._run(study, approved)
        run.close()
        return run

    def _run(self, study: Study, approved: list[str], **patience: float) -> Run:
        return Run(
            self.identity, self.roster, self.mailroom, self._folder(study), study, approved,
            look=lambda: self._approved(study), publish=self._control.put_again,
            first_model=lambda: self._first_model(study), **patience,
        )  # fmt: skip

    def _folder(self, study: Study) -> Path:
        return self.home / "runs" / study.hash

    def _first_model(self, study: Study) -> Model:
        model = self._first_models.pop(study.hash, None)
        return study.initial_model() if model is None else model.result()

    def _approved(self, study: Study) -> list[str]:
        return [email for email, decision in self._decisions(study).items() if decision.state in APPROVED]

    def _decisions(self, study: Study) -> dict[str, JobDecision]:
        """Return what each hospital of the cohort has decided, after a sync, also one that is no longer pinned."""
        self._control.sync()
        return {email: self._decision(email, study) for email in study.terms.cohort.hospitals}

    def _hospitals(self) -> list[RosterEntry]:
        return [entry for entry in self.roster.entries if entry.role == "hospital"]

    def _decision(self, email: str, study: Study) -> JobDecision:
        return self._control.job_state(email, study.job_name)
