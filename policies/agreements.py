"""One agreement: what it says, who entered it, who confirmed it, and when it is in force.

Kinds: business associate agreement (BAA), data use agreement (DUA), IRB approval, expert determination, and risk
acceptance (a hospital's own decision to do without a safeguard). Versions are frozen values; no I/O here. What differs
between two versions is said here too, field by field, for whoever compares them.
"""

from __future__ import annotations

import datetime
import tomllib
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError
from datasites.study.identity import same_identity
from datasites.study.manifest import Name, Sha256

Kind = Literal["baa", "dua", "irb", "expert_determination", "risk_acceptance"]
Organisation = Annotated[str, Field(min_length=1, max_length=120)]
Person = Annotated[str, Field(min_length=1, max_length=190, pattern=r"^\S+$")]

KIND_NAMES = {
    "baa": "business associate agreement",
    "dua": "data use agreement",
    "irb": "IRB approval",
    "expert_determination": "expert determination",
    "risk_acceptance": "risk acceptance",
}

#: What each kind names beside its parties, dates and document; an agreement without it is refused.
REQUIRED: dict[Kind, tuple[str, ...]] = {
    "baa": ("services",),
    "dua": ("purposes", "features"),
    "irb": ("reference", "purposes", "features"),
    "expert_determination": (),
    "risk_acceptance": ("services",),
}

_INCOMPLETE: dict[Kind, str] = {
    "baa": "a BAA names two parties or more, and the services it covers",
    "dua": "a DUA names its purposes and the features that it permits",
    "irb": "an IRB approval names its number (reference), its purposes and the features that it permits",
    "risk_acceptance": "a risk acceptance names what it accepts in services",
}

#: What the fields of an agreement are called where people read them.
FIELD_NAMES = {
    "kind": "Kind",
    "reference": "Number",
    "parties": "Parties",
    "services": "Services",
    "purposes": "Purposes",
    "features": "Features",
    "effective": "First day",
    "expires": "Last day",
    "document": "SHA-256 of the document",
}

#: Service that a risk acceptance names to let rounds run without a sandbox.
NO_SANDBOX = "no_sandbox"


class RegistryError(DatasitesError, ValueError):
    """The registry refuses an entry, a confirmation or a file; names the agreement, the rule and the remedy."""


class AgreementTerms(Agreed):
    """What an agreement says, as one person typed it from the document. Both dates are days on which it is in force.

    `reference` is the IRB's number for an IRB approval, and the document's own number otherwise.
    """

    id: Name
    kind: Kind
    parties: Annotated[tuple[Organisation, ...], Field(min_length=1)]
    services: tuple[Name, ...] = ()
    purposes: tuple[Name, ...] = ()
    features: tuple[Name, ...] = ()
    reference: Annotated[str, Field(max_length=80)] = ""
    effective: datetime.date
    expires: datetime.date
    document: Sha256

    @field_validator("parties", "services", "purposes", "features")
    @classmethod
    def _sorted_set(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(values)))

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.expires < self.effective:
            raise ValueError(f"agreement {self.id}: it expires before it takes effect; check both dates")
        lacks = any(not getattr(self, field) for field in REQUIRED[self.kind])
        if lacks or (self.kind == "baa" and len(self.parties) < 2):
            raise ValueError(f"agreement {self.id}: {_INCOMPLETE[self.kind]}")
        return self


class Agreement(Agreed):
    """One version of an agreement and who stands for it. Versions are never changed, only followed by the next."""

    terms: AgreementTerms
    version: Annotated[int, Field(ge=1)]
    entered_by: Person
    entered_on: datetime.date
    confirmed_by: Person | None = None
    confirmed_on: datetime.date | None = None
    terminated_by: Person | None = None
    terminated_on: datetime.date | None = None

    @model_validator(mode="after")
    def _two_people(self) -> Self:
        if (self.confirmed_by is None) != (self.confirmed_on is None):
            raise ValueError(f"agreement {self.terms.id}: who confirmed and when are stated together")
        if (self.terminated_by is None) != (self.terminated_on is None):
            raise ValueError(f"agreement {self.terms.id}: who terminated and when are stated together")
        if self.confirmed_by is not None and same_identity(self.confirmed_by, self.entered_by):
            raise ValueError(
                f"agreement {self.terms.id}: {self.entered_by} entered it and can't confirm it; "
                "ask a second person to compare it with the document"
            )
        return self

    def confirmed(self, on: datetime.date) -> bool:
        """Return whether a second person had confirmed this version by that day."""
        return self.confirmed_on is not None and self.confirmed_on <= on

    def in_force(self, on: datetime.date) -> bool:
        """Return whether this version is confirmed, effective, neither expired nor terminated on that day."""
        return (
            self.confirmed(on)
            and self.terms.effective <= on <= self.terms.expires
            and (self.terminated_on is None or on < self.terminated_on)
        )


def read_agreements(text: str) -> tuple[AgreementTerms, ...]:
    """Read `[[agreement]]` tables; raises `RegistryError` naming the entry, the key and what is wrong with it."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a nested file, or a number of thousands of digits
        raise RegistryError(f"agreements: not valid TOML: {error}") from error
    unknown = sorted(set(data) - {"agreement"})
    entries = data.get("agreement")
    if unknown or not isinstance(entries, list) or not entries:
        raise RegistryError(
            f"agreements: expected [[agreement]] tables and nothing else; found {', '.join(unknown) or 'none'}"
        )
    read = []
    for number, entry in enumerate(entries, start=1):
        try:
            read.append(AgreementTerms.model_validate(entry))
        except ValidationError as error:
            name = entry.get("id", "without an id") if isinstance(entry, dict) else "not a table"
            raise RegistryError(f"agreements: entry {number} ({name}): {first_problem(error)}") from error
    return tuple(read)


class TermChange(NamedTuple):
    """One field that differs. before, after: its values; of several values also which were taken out, and which added.

    Nothing stands before in an agreement that is entered for the first time.
    """

    field: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def name(self) -> str:
        """What people call the field."""
        return FIELD_NAMES[self.field]

    @property
    def removed(self) -> tuple[str, ...]:
        """Values that are there no more."""
        return tuple(value for value in self.before if value not in self.after)

    @property
    def added(self) -> tuple[str, ...]:
        """Values that were not there before."""
        return tuple(value for value in self.after if value not in self.before)


def term_changes(before: AgreementTerms | None, after: AgreementTerms) -> tuple[TermChange, ...]:
    """Return every field that differs between two versions of one agreement; all that is stated, where none is before.

    A value that is written otherwise counts as another one, also where policies take both for the same.
    """
    changes = (
        TermChange(field, _values(getattr(before, field, ())), _values(getattr(after, field))) for field in FIELD_NAMES
    )
    return tuple(change for change in changes if change.before != change.after)


def _values(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(str(one) for one in values if one != "")


def first_problem(error: ValidationError) -> str:
    """Return the first of pydantic's complaints, in one line."""
    detail = error.errors()[0]
    where = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
