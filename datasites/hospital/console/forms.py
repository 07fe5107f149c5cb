"""What people may type, and within which limits; rooms below check meaning, these check shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import forms
from django.conf import settings
from django.contrib.auth import authenticate
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator, ProhibitNullCharactersValidator

from datasites.hospital.cases.inbox import ORDERS
from datasites.hospital.cases.review import LONGEST_MESSAGE
from datasites.hospital.console.access import ADMIN, AUDITOR, OFFICER, STEWARD
from datasites.hospital.console.uploads import HashedFile, text_of
from datasites.hospital.models import Case
from datasites.hospital.people.passwords import LONGEST


class PlainTextField(forms.CharField):
    """A text that a person writes freely. read_by: who reads it, shown at the field."""

    def __init__(self, read_by: str, *, rows: int = 3, **options: Any) -> None:
        super().__init__(widget=forms.Textarea(attrs={"rows": rows}), help_text=read_by, **options)


class Reason(PlainTextField):
    """A reason, kept here in the audit log."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            "Read by people here, and in evidence bundles by whoever is given one; not sent to the researcher. Kept "
            "in the audit log for good: name no patient and no count of them.",
            max_length=2000,
            **options,
        )


class NewPassword(forms.CharField):
    """A new password; taken as typed."""

    def __init__(self, **options: Any) -> None:
        widget = forms.PasswordInput(attrs={"autocomplete": "new-password"})
        super().__init__(max_length=LONGEST, strip=False, widget=widget, **options)


class Password(forms.CharField):
    """The signed-in person's password. Those who signed in at the provider sign in there again instead
    (`field.html`), so the form accepts an empty one; `access.confirmed` refuses a wrong one."""

    def __init__(self, **options: Any) -> None:
        widget = forms.PasswordInput(attrs={"autocomplete": "current-password", "required": True})
        super().__init__(max_length=LONGEST, strip=False, required=False, widget=widget, **options)


class Code(forms.CharField):
    """A code of a second factor."""

    def __init__(self, **options: Any) -> None:
        attributes = {"autocomplete": "one-time-code", "inputmode": "numeric", "spellcheck": "false", "class": "code"}
        super().__init__(max_length=6, min_length=6, widget=forms.TextInput(attrs=attributes), **options)


class SignIn(AuthenticationForm):
    """Name, password, and the code of a second factor."""

    error_messages = {
        "invalid_login": "Name, password or code is wrong.",
        "inactive": "Name, password or code is wrong.",
    }
    code = Code(
        required=False,
        label="Code",
        help_text="Six digits from your app, each good once. Empty if you have set up no second factor.",
    )

    def __init__(self, *arguments: Any, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.fields["username"].label = "Name"
        self.fields["password"].validators.append(MaxLengthValidator(LONGEST))

    def clean(self) -> dict[str, Any]:
        """Ask all three at once, so that nobody learns which of them was wrong."""
        name, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if name is not None and password and "code" not in self.errors:
            code = self.cleaned_data.get("code", "")
            self.user_cache = authenticate(self.request, username=name, password=password, token=code)
            if self.user_cache is None:
                raise self.get_invalid_login_error()
            self.confirm_login_allowed(self.user_cache)
        return self.cleaned_data


class CaseSearch(forms.Form):
    """Which cases to list, and in which order."""

    contains = forms.CharField(max_length=100, required=False, label="Search")
    state = forms.ChoiceField(required=False, label="State", choices=[("", "any"), *Case.State.choices])
    order = forms.ChoiceField(required=False, label="Order", choices=[(name, name) for name in ORDERS])

    def chosen(self) -> dict[str, str]:
        """Return what was chosen; what makes no sense is left out."""
        values = self.cleaned_data if self.is_valid() else getattr(self, "cleaned_data", {})
        return {
            "contains": values.get("contains", ""),
            "state": values.get("state", ""),
            "order": values.get("order") or next(iter(ORDERS)),
        }


class Decide(forms.Form):
    """Approve or reject what a case page showed; `seen` and `hash` say what that was."""

    seen = forms.RegexField(r"^[0-9a-f]{64}$", widget=forms.HiddenInput)
    hash = forms.RegexField(r"^[0-9a-f]{64}$", widget=forms.HiddenInput, required=False)
    verdict = forms.ChoiceField(
        choices=[("approve", "Approve"), ("reject", "Reject for good")], widget=forms.RadioSelect, label="Your decision"
    )
    message = PlainTextField(
        "Read by the researcher exactly as written, and kept in the audit log: name no patient and no count of them. "
        "An approval has no message: the researcher only reads that you approved.",
        max_length=LONGEST_MESSAGE,
        required=False,
        label="Message to the researcher, for a rejection",
    )
    reason = Reason(label="Reason, kept here")
    password = Password(
        label="Your password", help_text="Asked again, so that nobody else decides at a screen that you left unlocked."
    )

    def clean(self) -> dict[str, Any]:
        """Require a text for the researcher with a rejection, and none with an approval, where it would be lost."""
        data = super().clean() or {}
        if data.get("verdict") == "reject" and not data.get("message") and "message" not in self.errors:
            self.add_error("message", "Write what the researcher is to read about the rejection.")
        if data.get("verdict") == "approve" and data.get("message"):
            self.add_error("message", "An approval sends no message; move it to the reason, or remove it.")
        return data


class Move(forms.Form):
    """Pause, resume, sit a round out, rejoin or revoke a study."""

    action = forms.ChoiceField(
        choices=[(a, a) for a in ("pause", "resume", "sit_out", "rejoin", "revoke")], widget=forms.HiddenInput
    )
    reason = Reason(label="Reason")
    password = Password(label="Your password")


class Kill(forms.Form):
    """The kill switch, on or off."""

    action = forms.ChoiceField(choices=[("kill", "kill"), ("unkill", "unkill")], widget=forms.HiddenInput)
    reason = Reason(label="Reason")
    sure = forms.BooleanField(required=False, label="Yes, stop every study of this datasite before its next round")
    password = Password(label="Your password")

    def __init__(self, *arguments: Any, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.fields["sure"].widget.attrs["required"] = True  # in the browser; only the one form has it

    def clean(self) -> dict[str, Any]:
        """Require the tick before everything is stopped."""
        data = super().clean() or {}
        if data.get("action") == "kill" and not data.get("sure"):
            self.add_error("sure", "Tick this box first: nothing was stopped.")
        return data


class WhatIfForm(forms.Form):
    """Terms of a study that nobody has asked for yet."""

    epsilon = forms.FloatField(min_value=0.01, max_value=100, initial=1.0, label="Epsilon")
    rounds = forms.IntegerField(min_value=1, max_value=10_000, initial=15, label="Rounds")
    steps = forms.IntegerField(min_value=1, max_value=10_000, initial=2, label="Steps per round")
    rate = forms.FloatField(min_value=0.0001, max_value=1, initial=0.1, label="Sampling rate")


class Widen(forms.Form):
    """A budget to widen to what datasite.toml says."""

    population = forms.SlugField(max_length=64, widget=forms.HiddenInput)
    reason = Reason(label="Reason")


class AcceptDelta(forms.Form):
    """A larger delta whose risk is to be accepted."""

    population = forms.SlugField(max_length=64, widget=forms.HiddenInput)
    delta = forms.FloatField(min_value=1e-15, max_value=0.1, label="Largest delta of a release")
    reason = Reason(label="Reason")


class DecideEntry(forms.Form):
    """Confirm or withdraw what somebody of the other role entered."""

    action = forms.ChoiceField(choices=[(a, a) for a in ("confirm", "withdraw")], widget=forms.HiddenInput)
    password = Password(label="Your password")


class AgreementText(forms.Form):
    """Agreements as TOML, as `datasites agreements import` reads them."""

    text = forms.CharField(
        max_length=60_000,
        widget=forms.Textarea(attrs={"rows": 14, "spellcheck": "false", "class": "code"}),
        label="Agreements as TOML",
        help_text="One [[agreement]] table each: id, kind, parties, services, effective, expires, document (SHA-256). "
        "Read by people here, and in evidence bundles by whoever is given one.",
    )


class TerminateAgreement(forms.Form):
    """An agreement to terminate today."""

    id = forms.RegexField(r"^[a-z0-9_-]{1,64}$", widget=forms.HiddenInput)
    password = Password(label="Your password")


class ProposeParty(forms.Form):
    """Another party's roster entry, chosen as a file or pasted. Shown again, the form has the file's text."""

    entry_file = forms.FileField(required=False, label="The party's roster-entry.json")
    entry = forms.CharField(
        max_length=10_000,
        required=False,
        widget=forms.Textarea(attrs={"rows": 6, "spellcheck": "false", "class": "code"}),
        label="Or its text",
        help_text="Read by people here, and in evidence bundles by whoever is given one.",
    )

    def __init__(self, data: Any = None, files: Any = None, **options: Any) -> None:
        self._unread, file = "", files.get("entry_file") if files else None
        if isinstance(file, HashedFile) and file.size:
            try:
                text = text_of(file)
            except ValidationError as error:
                self._unread = str(error.message)
            else:
                data = data.copy()
                data["entry"] = text
        super().__init__(data, files, **options)

    def clean(self) -> dict[str, Any]:
        """Require a file that is text, or a text."""
        data = super().clean() or {}
        if self._unread:
            self.add_error("entry_file", self._unread)
        elif not data.get("entry") and not self.errors:
            self.add_error("entry_file", "Choose the file that the party has sent, or paste its text below.")
        return data


class DecideParty(forms.Form):
    """Pin or withdraw an entry that somebody else entered."""

    action = forms.ChoiceField(choices=[("pin", "pin"), ("withdraw", "withdraw")], widget=forms.HiddenInput)
    fingerprint = forms.CharField(
        max_length=80,
        required=False,
        label="Fingerprint, as the party reads it to you by telephone",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "class": "code"}),
    )
    password = Password(label="Your password")


class RevokeParty(forms.Form):
    """A party that is trusted no longer."""

    email = forms.CharField(max_length=190, widget=forms.HiddenInput)
    reason = Reason(label="Reason")
    password = Password(label="Your password")


class AuditSearch(forms.Form):
    """Which records to show."""

    kind = forms.RegexField(
        r"^[a-z][a-z0-9_]{0,47}$",
        required=False,
        label="Kind",
        widget=forms.TextInput(attrs={"maxlength": 48}),
        error_messages={"invalid": "Take a kind as records show it, such as approved or sign_in_failed."},
    )
    contains = forms.CharField(
        max_length=100, required=False, label="Contains", widget=forms.TextInput(attrs={"type": "search"})
    )
    person = forms.CharField(max_length=190, required=False, label="Person")
    since = forms.DateField(required=False, label="From day", widget=forms.DateInput(attrs={"type": "date"}))
    until = forms.DateField(required=False, label="To day", widget=forms.DateInput(attrs={"type": "date"}))
    before = forms.IntegerField(min_value=0, max_value=2**53, required=False, widget=forms.HiddenInput)


class AddPerson(forms.Form):
    """A new person with one role."""

    name = forms.RegexField(
        r"^[A-Za-z0-9@.+_-]{1,150}\Z",
        label="Name",
        help_text="Letters, digits and @ . + - _",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    email = forms.EmailField(
        max_length=190,
        required=False,
        label="E-mail address",
        help_text="Identifies the person: policies compare it with the researcher's. Auditors and admins may "
        "have none.",
        widget=forms.EmailInput(attrs={"autocomplete": "off"}),
    )
    role = forms.ChoiceField(
        choices=[
            (STEWARD, "data steward"),
            (OFFICER, "privacy officer"),
            (AUDITOR, "auditor"),
            (ADMIN, "admin"),
        ],
        label="Role",
    )
    by_provider = forms.BooleanField(required=False, label="Signs in only through the organisation")
    password = Password(label="Your own password")

    def __init__(self, *arguments: Any, **values: Any) -> None:
        super().__init__(*arguments, **values)
        if settings.DATASITE.settings.console.oidc is None:
            del self.fields["by_provider"]


class DeactivatePerson(forms.Form):
    """A person to keep out from now on."""

    name = forms.CharField(max_length=150, widget=forms.HiddenInput)
    password = Password(label="Your own password")


class OnPerson(DeactivatePerson):
    """A person to invite anew, or whose second factor to take off."""


class _NewPasswords(forms.Form):
    """A new password, twice."""

    new_password = NewPassword(
        label="New password",
        help_text="12 characters or more. A few uncommon words are better than one with digits and signs.",
    )
    again = NewPassword(label="New password again", validators=[ProhibitNullCharactersValidator()])

    def clean(self) -> dict[str, Any]:
        """Require that both new passwords are the same."""
        data = super().clean() or {}
        if data.get("new_password") != data.get("again"):
            self.add_error("again", "The two new passwords differ.")
        return data


class ChangePassword(_NewPasswords):
    """One's own password."""

    field_order = ["password"]
    password = Password(label="Your current password")


class AcceptInvitation(_NewPasswords):
    """The password of somebody who was invited."""

    field_order = ["code"]
    code = forms.CharField(
        max_length=500,
        label="Your link, or what follows its #",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "class": "code"}),
    )


class BeginSecondFactor(forms.Form):
    """A new secret."""

    code = Code(required=False, label="Code of your present second factor")
    password = Password(label="Your password")


class ConfirmSecondFactor(forms.Form):
    """The first code of a new secret."""

    code = Code(label="Code that the app shows now")


def problems(form: forms.Form) -> Iterator[str]:
    """Yield each problem of a form in one line, for places that show a message and not the form."""
    for name, errors in form.errors.items():
        label = form.fields[name].label or name if name in form.fields else ""
        for error in errors:
            yield f"{label}: {error}" if label else str(error)
