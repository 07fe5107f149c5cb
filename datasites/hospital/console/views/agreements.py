"""The registry of agreements: entered by one person, compared and confirmed by another, terminated by either.

What an agreement says is typed into a form of its kind, or imported as TOML; both show what it would change before it
is entered. Which studies rest on one is asked of the policies (`cases.reliance`), and nothing is decided here.
"""

from __future__ import annotations

import datetime
from functools import wraps
from typing import Any, NamedTuple, cast

from django.http import Http404, HttpResponse
from django.shortcuts import render
from pydantic import ValidationError

from datasites.hospital.cases.reliance import (
    Effect,
    OpenStudy,
    Reliance,
    by_hand,
    choices,
    known_features,
    once_confirmed,
    open_studies,
    rests_on,
)
from datasites.hospital.console.access import READERS, REVIEWERS, View, confirmed, page, present, refuse
from datasites.hospital.console.acts import act
from datasites.hospital.console.agreement_forms import (
    KIND_USES,
    AgreementForm,
    ConfirmVersion,
    EntrySteps,
    data_of,
    listed,
    unknown_names,
)
from datasites.hospital.console.forms import AgreementText, TerminateAgreement, problems
from datasites.hospital.people.agreements import (
    confirm_agreement,
    enter_terms,
    enter_toml,
    require_document,
    terminate_agreement,
    with_terms,
    with_toml,
)
from datasites.study.dates import today
from datasites.study.errors import DatasitesError
from datasites.study.identity import same_identity
from policies.registry import (
    KIND_NAMES,
    SOON_DAYS,
    STANDING_NAMES,
    Agreement,
    AgreementTerms,
    Kind,
    Registry,
    RegistryError,
    RegistryFile,
    Standing,
    TermChange,
    is_party,
    term_changes,
)

#: The last day that another one follows.
LAST_DAY = datetime.date.max - datetime.timedelta(days=1)


class Shown(NamedTuple):
    """One version, with how it stands. days_left: until it ends, where it is in force and that is soon.

    rests: the studies that it permits something today; follower: the version that takes over when it ends, if any.
    """

    agreement: Agreement
    kind: str
    standing: Standing
    standing_name: str
    days_left: int | None
    rests: tuple[Reliance, ...]
    follower: Agreement | None

    @property
    def unused(self) -> bool:
        """Say whether it is in force, and no study here rests on it."""
        return self.standing == "in_force" and not self.rests


class Compared(NamedTuple):
    """A version that doesn't count yet: what differs from the confirmed one before, and what it changes here.

    skipped: versions in between that nobody confirmed, which it isn't compared with. day: the first on which it counts.
    """

    agreement: Agreement
    kind: str
    before: Agreement | None
    skipped: tuple[Agreement, ...]
    changes: tuple[TermChange, ...]
    day: datetime.date
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]


def _registry_page(view: View) -> View:
    """Answer with what is wrong where the registry's file can't be read."""

    @wraps(view)
    def guarded(request: Any, *arguments: Any, **values: Any) -> HttpResponse:
        try:
            return view(request, *arguments, **values)
        except RegistryError as error:
            return render(request, "console/agreements.html", {"problem": str(error)}, status=500)

    return guarded


@page(READERS)
@_registry_page
def overview(request: Any) -> HttpResponse:
    """Show each agreement with the version that counts and the one that waits for a second person."""
    registry, studies, day = _load(request), open_studies(request.site.home), today()
    lines = []
    for id in sorted({a.terms.id for a in registry.agreements}):
        versions = [_shown(registry, a, studies, day) for a in reversed(registry.versions(id))]
        counts = [v for v in versions if v.standing in ("in_force", "later", "waiting")]
        lines.append((id, counts or versions[:1]))
    waiting = [line for line in lines if any(v.standing == "waiting" for v in line[1])]
    forced = [line for line in lines if line not in waiting and line[1][0].standing in ("in_force", "later")]
    over = [line for line in lines if line not in waiting and line not in forced]
    groups = [("waiting", "Waiting for a second person", waiting), ("force", "In force", forced)]
    context = {
        "groups": [group for group in (*groups, ("over", "No longer in force", over)) if group[2]],
        "soon": [v for _, versions in lines for v in versions if v.days_left is not None and v.follower is None],
        "by_hand": by_hand(request.site.home, registry, day),
        "unreadable": [study for study in studies if study.needs is None],
        "may_act": request.role in REVIEWERS,
    }
    return render(request, "console/agreements.html", context)


@page(READERS)
@_registry_page
def show(request: Any, id: str) -> HttpResponse:
    """Show one agreement: its versions, what rests on it, and what waits for a second person."""
    registry = _load(request)
    if not registry.versions(id):
        raise Http404
    return _show(request, registry, id)


@page(REVIEWERS)
def kinds(request: Any) -> HttpResponse:
    """Let people choose the kind of an agreement."""
    offered = [(kind, KIND_NAMES[kind], use) for kind, use in KIND_USES.items()]
    return render(request, "console/agreement_kinds.html", {"kinds": offered})


@page(REVIEWERS, ("GET", "POST"))
@_registry_page
def new(request: Any, kind: str) -> HttpResponse:
    """Enter a new agreement, after a look at what it would change."""
    if kind not in KIND_NAMES:
        raise Http404
    return _enter(request, cast(Kind, kind), None)


@page(REVIEWERS, ("GET", "POST"))
@_registry_page
def new_version(request: Any, id: str) -> HttpResponse:
    """Enter the next version of an agreement; the form holds what the present one says."""
    versions = _load(request).versions(id)
    if not versions:
        raise Http404
    return _enter(request, versions[-1].terms.kind, versions[-1])


@page(REVIEWERS, ("GET", "POST"))
@_registry_page
def enter(request: Any) -> HttpResponse:
    """Enter agreements as TOML; they count once somebody else has confirmed them."""

    def again(form: Any, status: int = 200) -> HttpResponse:
        context = {"form": form, "mistakes": list(listed(form))}
        return render(request, "console/agreement_toml.html", context, status=status)

    def do(values: dict[str, Any]) -> str:
        names = _named(enter_toml(request.site, present(request), values["text"]))
        return f"Entered: {names or 'nothing new'}. A second person compares them with the documents and confirms."

    if request.method == "GET":
        return again(AgreementText())
    form = AgreementText(request.POST)
    if request.POST.get("step") == "change":
        return again(AgreementText(initial={"text": request.POST.get("text", "")}))
    if request.POST.get("step") != "preview" or not form.is_valid():
        return act(request, form, do, "agreements", again=again, at="text")
    registry = _load(request)
    try:
        then, entered = with_toml(registry, form.cleaned_data["text"])
    except DatasitesError as error:
        form.add_error("text", str(error))
        return again(form, 409)
    studies = open_studies(request.site.home)
    compared = [
        _compared(request, then, a, studies) for a in then.agreements if (a.terms.id, a.version) in set(entered)
    ]
    hidden = [("text", form.cleaned_data["text"])]
    return _preview(request, compared, hidden, "enter-agreement")


@page(REVIEWERS, ("POST",))
@_registry_page
def confirm(request: Any) -> HttpResponse:
    """Confirm what somebody else entered, or compare the document with it first."""
    form = ConfirmVersion(request.POST, request.FILES)
    id = request.POST.get("id", "")

    def again(form: Any, status: int) -> HttpResponse:
        registry = _load(request)
        if {"id", "version"} & set(form.errors) or not registry.versions(id):
            return refuse(request, status, " ".join(problems(form)))
        return _show(request, registry, id, confirm=form, status=status)

    def do(values: dict[str, Any]) -> str:
        confirm_agreement(request.site, confirmed(request), values["id"], values["version"], form.digest)
        return f"{values['id']} version {values['version']} is confirmed."

    if form.is_valid() and (form.digest or request.POST.get("step") == "compare"):
        if not form.digest:
            form.add_error("document_file", "Choose the document, or type its SHA-256.")
            return again(form, 400)
        registry = _load(request)
        try:
            require_document(registry, id, form.cleaned_data["version"], form.digest)
        except RegistryError as error:
            form.add_error("document_file", str(error))
            return again(form, 409)
        if request.POST.get("step") == "compare":
            return _show(request, registry, id, confirm=form, same=form.digest)
    return act(request, form, do, "agreement", id, again=again)


@page(REVIEWERS, ("POST",))
@_registry_page
def terminate(request: Any) -> HttpResponse:
    """Terminate an agreement today."""
    form, id = TerminateAgreement(request.POST), request.POST.get("id", "")

    def again(form: Any, status: int) -> HttpResponse:
        registry = _load(request)
        if not registry.versions(id):
            return refuse(request, status, " ".join(problems(form)))
        return _show(request, registry, id, terminate=form, status=status)

    def do(values: dict[str, Any]) -> str:
        terminate_agreement(request.site, confirmed(request), values["id"])
        return f"{values['id']} ends today; studies that rest on it are denied from the next round on."

    return act(request, form, do, "agreement", id, again=again)


def _load(request: Any) -> Registry:
    home = request.site.home
    return RegistryFile(home.registry, home.settings.organisation).load()


def _enter(request: Any, kind: Kind, known: Agreement | None) -> HttpResponse:
    """Show the form, its preview, or the agreement once it is entered."""
    home, registry = request.site.home, _load(request)
    studies = open_studies(home)
    organisation, options = home.settings.organisation, choices(home, registry, studies)
    terms = known.terms if known else None
    after = known.version if known else 0

    def form_of(data: Any, files: Any = None) -> AgreementForm:
        return AgreementForm(data, files, kind, organisation, options, terms)

    def again(form: Any, status: int = 200) -> HttpResponse:
        context = {
            "form": form, "mistakes": list(listed(form)), "kind": kind, "kind_name": KIND_NAMES[kind],
            "use": KIND_USES[kind], "known": known, "organisation_here": organisation,
        }  # fmt: skip
        return render(request, "console/agreement_form.html", context, status=status)

    if request.method == "GET":
        return again(form_of(None))
    step = request.POST.get("step", "")
    if step not in ("change", "enter"):
        form = form_of(request.POST, request.FILES)
    elif (sent := _sent(request)) is not None:
        form, after = form_of(data_of(sent[0], organisation)), sent[1]
    else:
        return refuse(request, 400, "This preview can't be read any more; fill the form in again.")
    if step == "change":
        return again(form)
    if not form.is_valid() or form.terms is None:
        return again(form, 400)
    entered = form.terms
    if step == "enter":

        def do(_: dict[str, Any]) -> str:
            version = enter_terms(request.site, present(request), entered, after)
            return f"{entered.id} version {version} is entered. A second person compares it with the document."

        return act(request, form, do, "agreement", entered.id, again=again)
    try:
        then = with_terms(registry, entered, after, request.user.username)
    except DatasitesError as error:
        taken = known is None and bool(registry.versions(entered.id))
        form.add_error("id" if taken else None, str(error))
        return again(form, 409)
    hidden = [("terms", entered.canonical().decode()), ("after", str(after))]
    return _preview(request, [_compared(request, then, then.latest(entered.id), studies)], hidden)


def _sent(request: Any) -> tuple[AgreementTerms, int] | None:
    steps = EntrySteps(request.POST)
    try:
        if steps.is_valid():
            return AgreementTerms.model_validate_json(steps.cleaned_data["terms"]), steps.cleaned_data["after"]
    except ValidationError:
        pass
    return None


def _preview(request: Any, compared: list[Compared], hidden: list[tuple[str, str]], target: str = "") -> HttpResponse:
    context = {"compared": compared, "hidden": hidden, "target": target}
    return render(request, "console/agreement_preview.html", context)


def _show(
    request: Any,
    registry: Registry,
    id: str,
    *,
    confirm: ConfirmVersion | None = None,
    terminate: TerminateAgreement | None = None,
    same: str = "",
    status: int = 200,
) -> HttpResponse:
    day, studies, may_act = today(), open_studies(request.site.home), request.role in REVIEWERS
    versions = [_shown(registry, a, studies, day) for a in reversed(registry.versions(id))]
    newest = registry.latest(id)
    waits = newest in registry.unconfirmed()
    other = not same_identity(newest.entered_by, request.user.username)
    live = any(v.standing in ("in_force", "later", "waiting") for v in versions)
    forms = [form for form in (confirm, terminate) if form is not None]
    context = {
        "id": id,
        "kind": KIND_NAMES[newest.terms.kind],
        "versions": versions,
        "counts": next((v for v in versions if v.standing == "in_force"), None),
        "waits": _compared(request, registry, newest, studies) if waits else None,
        "own": waits and not other,
        "confirm": (confirm or ConfirmVersion(initial={"id": id, "version": newest.version}, auto_id="confirm_%s"))
        if waits and other and may_act
        else None,
        "terminate": (terminate or TerminateAgreement(initial={"id": id}, auto_id="end_%s"))
        if live and may_act
        else None,
        "same": same,
        "mistakes": [mistake for form in forms for mistake in listed(form)],
        "by_hand": by_hand(request.site.home, registry, day),
        "may_act": may_act,
    }
    return render(request, "console/agreement.html", context, status=status)


def _shown(registry: Registry, agreement: Agreement, studies: tuple[OpenStudy, ...], day: datetime.date) -> Shown:
    standing, terms = registry.standing(agreement, day), agreement.terms
    forced = standing == "in_force"
    left = (terms.expires - day).days
    day_after = min(terms.expires, LAST_DAY) + datetime.timedelta(days=1)
    followers = (a for a in registry.in_force(day_after) if forced and a.terms.id == terms.id and a != agreement)
    return Shown(
        agreement,
        KIND_NAMES[terms.kind],
        standing,
        STANDING_NAMES[standing],
        left if forced and left <= SOON_DAYS else None,
        rests_on(registry, terms.id, studies, day) if forced else (),
        next(followers, None),
    )


def _compared(request: Any, then: Registry, agreement: Agreement, studies: tuple[OpenStudy, ...]) -> Compared:
    """Compare a version of `then`, which holds it unconfirmed."""
    terms, home, on = agreement.terms, request.site.home, today()
    before = then.confirmed_before(terms.id, agreement.version)
    first = before.version if before else 0
    skipped = tuple(a for a in then.versions(terms.id) if first < a.version < agreement.version)
    day, effects = once_confirmed(then, agreement, studies, on)
    return Compared(
        agreement,
        KIND_NAMES[terms.kind],
        before,
        skipped,
        term_changes(before.terms if before else None, terms),
        day,
        effects,
        tuple(_notes(then, agreement, before, known_features(home, studies), on)),
    )


def _notes(
    then: Registry, agreement: Agreement, before: Agreement | None, features: tuple[str, ...], on: datetime.date
) -> list[str]:
    terms, notes = agreement.terms, []
    if terms.expires < on:
        notes.append("Its last day is over: it will not come into force.")
    elif terms.effective > on:
        notes.append(f"It comes into force on {terms.effective}, not before.")
    if not is_party(then.organisation, agreement):
        notes.append(f"{then.organisation} is not among its parties, so it counts for nothing here.")
    if before and before.terms.document == terms.document:
        notes.append(f"The document is still that of version {before.version}.")
    if strange := unknown_names(terms.features, features):
        notes.append(
            f"No study and no mapping here has these features; check how they are written: {', '.join(strange)}."
        )
    return notes


def _named(entered: list[tuple[str, int]]) -> str:
    return ", ".join(f"{id} version {version}" for id, version in entered)
