"""The form of an agreement, one for each kind: what people may pick, type and choose, and the terms that come of it.

Which fields a kind must have is the policies' matter (`policies.registry.REQUIRED`), and so is whether the terms are
sound: they are made as anywhere else, and what is wrong with them is shown at the field that it is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from django import forms
from django.core.files.uploadedfile import UploadedFile
from django.forms.boundfield import BoundField
from django.http import QueryDict
from pydantic import ValidationError

from datasites.hospital.cases.reliance import Choices
from datasites.hospital.console.forms import Password
from datasites.hospital.console.uploads import MOST_DOCUMENT, HashedFile
from datasites.study.identity import same_identity
from policies.registry import NO_SANDBOX, REQUIRED, AgreementTerms, Kind

#: Fields of several values, which are picked, typed, or both; each with what is typed in a line of its own.
LISTS = ("parties", "services", "purposes", "features")
#: What a form of each kind asks for beside parties, dates and document.
_ASKED: dict[Kind, tuple[str, ...]] = {
    "baa": ("parties", "services"),
    "dua": ("parties", "purposes", "features"),
    "irb": ("parties", "purposes", "features"),
    "expert_determination": ("parties", "purposes", "features"),
    "risk_acceptance": ("services",),
}

#: One sentence on each kind, for whoever chooses one.
KIND_USES: dict[Kind, str] = {
    "baa": "A party may run services that handle this hospital's share of a study, such as storage or aggregation.",
    "dua": "Data may be used for stated purposes; narrows the features that an IRB approval permits.",
    "irb": "An ethics board has approved a purpose, under its number, with these features.",
    "expert_determination": "An expert has determined how likely it is that somebody is identified. Kept with "
    "decisions; no rule asks for it.",
    "risk_acceptance": "This hospital does without a safeguard, and two people answer for it.",
}

_LABELS = {
    "baa": {"parties": "Parties beside this hospital", "services": "Services that it covers"},
    "dua": {"parties": "Parties beside this hospital", "features": "Features that it permits"},
    "irb": {"parties": "Parties beside this hospital, if it names any", "features": "Features that it permits"},
    "expert_determination": {"parties": "Parties beside this hospital, if it names any"},
    "risk_acceptance": {"services": "What this hospital does without"},
}
_USUAL = {"parties": "Parties", "services": "Services", "purposes": "Purposes", "features": "Features"}
_READERS = "Read by people here, and in evidence bundles by whoever is given one."
_NAMES = "Names as studies write them: small letters, digits, - and _."


class Picks(forms.MultipleChoiceField):
    """Values of which known ones are offered. Others are taken too: the terms say what a value must look like.

    Where a known value is gone meanwhile, what people picked before stays picked.
    """

    widget = forms.CheckboxSelectMultiple

    def valid_value(self, value: str) -> bool:
        """Take any."""
        return len(value) <= 190


class Document(forms.FileField):
    """The signed document: its hash is taken (`uploads`), and it is kept nowhere."""

    def clean(self, data: Any, initial: Any = None) -> Any:
        """Refuse one that is too large to be hashed here."""
        file = super().clean(data, initial)
        if isinstance(file, UploadedFile) and (file.size or 0) > MOST_DOCUMENT:
            raise forms.ValidationError(
                f"Larger than {MOST_DOCUMENT // 2**20} MiB. Work out its SHA-256 yourself (sha256sum FILE) and type it."
            )
        return file


class DocumentHash(forms.CharField):
    """A SHA-256 as people copy it: capitals and spaces are no matter."""

    def __init__(self, **options: Any) -> None:
        widget = forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "class": "code"})
        super().__init__(max_length=200, required=False, widget=widget, **options)

    def clean(self, value: Any) -> str:
        """Return 64 small letters and digits, or nothing."""
        text = "".join(super().clean(value).split()).lower()
        if text and not re.fullmatch(r"[0-9a-f]{64}", text):
            raise forms.ValidationError(f"A SHA-256 has 64 digits and letters a to f; this has {len(text)} characters.")
        return text


class AgreementForm(forms.Form):
    """An agreement of one kind. known: its present version, of which the next one is made; it keeps the id."""

    id = forms.CharField(
        max_length=64,
        label="Id",
        help_text="A short name that stays the same over all versions, such as baa-storage-2026: small letters, "
        "digits, - and _.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    reference = forms.CharField(max_length=80, required=False, label="Number of the document, if it has one")
    effective = forms.DateField(label="First day in force", widget=forms.DateInput({"type": "date"}, "%Y-%m-%d"))
    expires = forms.DateField(label="Last day in force", widget=forms.DateInput({"type": "date"}, "%Y-%m-%d"))
    document_file = Document(
        required=False,
        label="The signed document",
        help_text=f"Its SHA-256 is worked out here, up to {MOST_DOCUMENT // 2**20} MiB; the file itself is not kept.",
    )
    document = DocumentHash(label="Or its SHA-256, as sha256sum prints it")

    def __init__(
        self,
        data: Any,
        files: Any,
        kind: Kind,
        organisation: str,
        choices: Choices,
        known: AgreementTerms | None = None,
    ) -> None:
        self.kind, self.organisation, self.known = kind, organisation, known
        self.terms: AgreementTerms | None = None
        self.hashed = _hashed(files)
        self._present = self._initial(known)
        if data is not None and self.hashed and self._takes(data.get("document", "")):
            data = _with_hash(data, self.hashed)
        super().__init__(data, files, initial=self._present, label_suffix="")
        if known is not None:
            self.fields["id"].disabled = True
            self.fields["id"].help_text = "The id stays the same over all versions."
        if "reference" in REQUIRED[kind]:
            self.fields["reference"].required = True
            self.fields["reference"].label = "Number of the approval, as studies state it"
        for name in self.lists:
            self._add(name, self._offered(name, choices))
        end = ["reference", "effective", "expires", "document_file", "document"]
        self.order_fields(["id", *(part for name in self.lists for part in (name, f"other_{name}")), *end])

    @property
    def lists(self) -> tuple[str, ...]:
        """Fields of several values; also those that the kind doesn't ask for and the present version states."""
        return tuple(name for name in LISTS if name in _ASKED[self.kind] or self._present.get(name))

    def _takes(self, typed: str) -> bool:
        """Say whether a chosen file stands for the hash: none was typed, or only that of the present version."""
        return not typed.strip() or (self.known is not None and typed.strip() == self.known.document)

    def _initial(self, known: AgreementTerms | None) -> dict[str, Any]:
        if known is None:
            return {"services": [NO_SANDBOX]} if self.kind == "risk_acceptance" else {}
        values = {name: getattr(known, name) for name in AgreementTerms.model_fields}
        others = [party for party in known.parties if not same_identity(party, self.organisation)]
        return {**values, "parties": others}

    def _offered(self, name: str, choices: Choices) -> list[tuple[str, str]]:
        if name == "parties":
            offered = [(party, f"{party} (in the roster)") for party in choices.pinned]
            offered += [(party, party) for party in choices.parties]
        elif self.kind == "risk_acceptance" and name == "services":
            offered = [(NO_SANDBOX, f"{NO_SANDBOX}: submitted code runs without a sandbox")]
        else:
            offered = [(value, value) for value in getattr(choices, name)]
        sent = self.data.getlist(name) if isinstance(self.data, QueryDict) else ()
        kept = [*sent, *self.initial.get(name, ())]
        known = {value for value, _ in offered}
        return offered + [(value, value) for value in dict.fromkeys(kept) if value not in known]

    def _add(self, name: str, offered: list[tuple[str, str]]) -> None:
        label = _LABELS[self.kind].get(name, _USUAL[name])
        self.fields[name] = Picks(choices=offered, required=False, label=label)
        if name == "parties":
            more = "Other parties, one in each line, written as in the document and in studies"
        else:
            more = f"Other {name}, one in each line"
        self.fields[f"other_{name}"] = forms.CharField(
            max_length=20_000,
            required=False,
            label=more,
            widget=forms.Textarea(attrs={"rows": 2, "spellcheck": "false"}),
            help_text=_READERS if name == "parties" else f"{_NAMES} {_READERS}",
        )

    def clean(self) -> dict[str, Any]:
        """Make the terms; each thing that is wrong is said at its field."""
        data = super().clean() or {}
        lists = {name: self._values(data, name) for name in self.lists}
        for name in self.lists:
            needed = name in REQUIRED[self.kind] or (name == "parties" and self.kind == "baa")
            if needed and not lists[name] and not {name, f"other_{name}"} & set(self.errors):
                self.add_error(name, "Pick or type one at least.")
        self._check_document(data)
        lists["parties"] = (self.organisation, *lists.get("parties", ()))
        if not self.errors:
            single = {name: data[name] for name in ("id", "reference", "effective", "expires", "document")}
            self._make({"kind": self.kind, **single, **lists})
        return data

    def _values(self, data: dict[str, Any], name: str) -> tuple[str, ...]:
        typed = [" ".join(line.split()) for line in data.get(f"other_{name}", "").splitlines()]
        return tuple(dict.fromkeys([*data.get(name, ()), *filter(None, typed)]))

    def _check_document(self, data: dict[str, Any]) -> None:
        if {"document", "document_file"} & set(self.errors):
            return
        if not data.get("document"):
            self.add_error("document_file", "Choose the signed document, or type its SHA-256 below.")
        elif self.hashed and data["document"] != self.hashed.digest:
            self.add_error("document", f"The chosen file has another SHA-256, {self.hashed.digest}; keep one of both.")

    def _make(self, values: dict[str, Any]) -> None:
        try:
            self.terms = AgreementTerms.model_validate(values)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                name, *place = fault["loc"] or ("",)
                self.add_error(*self._shown_at(str(name), place, values, fault["msg"].removeprefix("Value error, ")))

    def _shown_at(self, name: str, place: list[Any], values: dict[str, Any], fault: str) -> tuple[str | None, str]:
        if name in LISTS and place:
            value = values[name][place[0]]
            typed = value in self._values({f"other_{name}": self.cleaned_data.get(f"other_{name}", "")}, name)
            return (f"other_{name}" if typed else name), f"{value}: {fault}"
        if name in self.fields:
            return name, fault
        sentence = fault.removeprefix(f"agreement {values['id']}: ")
        return ("expires" if "expires before" in fault else None), sentence[:1].upper() + sentence[1:]


class EntrySteps(forms.Form):
    """What a preview sends on: the terms as they were shown, and the newest version that was there."""

    terms = forms.CharField(max_length=100_000, widget=forms.HiddenInput)
    after = forms.IntegerField(min_value=0, max_value=1_000_000, widget=forms.HiddenInput)


class CompareDocument(forms.Form):
    """The document once more, in the hands of the second person: does it have the hash that was entered?"""

    document_file = Document(
        required=False,
        label="The signed document, as you have it",
        help_text="Its SHA-256 is compared with the one that was entered; the file itself is not kept.",
    )
    document = DocumentHash(label="Or its SHA-256")

    def __init__(self, data: Any = None, files: Any = None, **options: Any) -> None:
        self.hashed = _hashed(files)
        if data is not None and self.hashed:
            data = _with_hash(data, self.hashed)
        super().__init__(data, files, label_suffix="", **options)

    @property
    def digest(self) -> str:
        """The SHA-256 of what was chosen or typed, or ""."""
        return str(self.cleaned_data.get("document", ""))


class ConfirmVersion(CompareDocument):
    """A version of an agreement that a second person has compared with the document."""

    id = forms.RegexField(r"^[a-z0-9_-]{1,64}$", widget=forms.HiddenInput)
    version = forms.IntegerField(min_value=1, max_value=1_000_000, widget=forms.HiddenInput)
    password = Password(label="Your password, to confirm")


def listed(form: forms.BaseForm) -> Iterator[tuple[BoundField | None, str]]:
    """Yield each error of a form with its field, or None for one of the whole form, as they come on the page."""
    for error in form.non_field_errors():
        yield None, str(error)
    for name in form.fields:
        for error in form.errors.get(name, ()):
            yield form[name], str(error)


def data_of(terms: AgreementTerms, organisation: str) -> QueryDict:
    """Return what a form would send that says the same as these terms."""
    data = QueryDict(mutable=True)
    for name in ("id", "reference", "effective", "expires", "document"):
        data[name] = str(getattr(terms, name))
    for name in LISTS:
        data.setlist(name, [value for value in getattr(terms, name) if not same_identity(value, organisation)])
    return data


def _with_hash(data: QueryDict, file: HashedFile) -> QueryDict:
    # Browsers send no file a second time: shown again, the form has the hash in its place.
    data = data.copy()
    data["document"] = file.digest
    return data


def _hashed(files: Any) -> HashedFile | None:
    file = files.get("document_file") if files else None
    return file if isinstance(file, HashedFile) and 0 < (file.size or 0) <= MOST_DOCUMENT else None


def unknown_names(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return those names that nothing here knows: likely slips of the pen."""
    there = set(known)
    return tuple(name for name in names if name not in there)
