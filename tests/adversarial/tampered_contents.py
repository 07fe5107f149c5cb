"""Evidence bundles that the hospital changed and signed anew, log and all: what files say of one another shows it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasites.hospital.audit.bindings import commit
from datasites.hospital.evidence.bundle import entry_digest
from datasites.study.canonical import canonical_json
from datasites.study.identity import Identity
from tests.adversarial.tampered_archives import Files, Tampered
from tests.hospital.evidence_of import (
    APPROVAL,
    EVALUATION,
    ROUNDS,
    STUDY_HASH,
    edited,
    pack,
    priced,
    rechain,
    resign,
)
from tests.policies.facts_of import HOSPITALS, OFFICER, RESEARCHER, STEWARD

Records = list[dict[str, Any]]


def with_key(change: Callable[[Files, Identity], object], **index: Any) -> Callable[[Path, Files, Identity], object]:
    def write(path: Path, files: Files, key: Identity) -> None:
        files = copy.deepcopy(files)
        change(files, key)
        pack(path, resign(files, key, **index))

    return write


def in_the_log(change: Callable[[Records], object]) -> Callable[[Path, Files, Identity], object]:
    def tamper(files: Files, key: Identity) -> None:
        rechain(files, key, change)
        _open_only_what_is_bound(files)

    return with_key(tamper)


def _open_only_what_is_bound(files: Files) -> None:
    """Leave openings out that the log does not bind any more: they would give the change away."""

    def is_bound(entry: dict[str, Any]) -> bool:
        return commit(bytes.fromhex(entry["salt"]), entry["content"]).encode() in files["audit.jsonl"]

    files["openings.json"] = canonical_json([e for e in json.loads(files["openings.json"]) if is_bound(e)])


def first_of(bodies: Records, kind: str, **fields: Any) -> dict[str, Any]:
    """The first record of a kind with these fields."""
    return next(b for b in bodies if b["kind"] == kind and fields.items() <= b["fields"].items())


def _charged_as(charges: Mapping[str, Any], round: int = 2, *, local: bool = True) -> Callable[[Files, Identity], None]:
    """Charge a round otherwise, in ledger and log alike."""

    def change(files: Files, key: Identity) -> None:
        ledger = json.loads(files["ledger.json"])
        entry = next(entry for entry in ledger if entry["round"] == round)
        before = entry_digest(entry)
        text = canonical_json(charges).decode()
        names = ("charges", "local_charges") if local else ("charges",)
        entry.update(dict.fromkeys(names, charges))
        files["ledger.json"] = canonical_json(ledger)

        def relog(bodies: Records) -> None:
            fields = first_of(bodies, "charged", digest=before)["fields"]
            fields.update(dict.fromkeys(names, text), digest=entry_digest(entry))

        rechain(files, key, relog)

    return change


def told_apart(entry: Mapping[str, Any], record: Mapping[str, Any]) -> Callable[[Files, Identity], None]:
    """Let the ledger's entry of round 1 and the log's record of it say different things."""

    def change(files: Files, key: Identity) -> None:
        ledger = json.loads(files["ledger.json"])
        before = entry_digest(ledger[0])
        ledger[0].update(entry)
        files["ledger.json"] = canonical_json(ledger)
        fields = {**record, "digest": entry_digest(ledger[0])}
        rechain(files, key, lambda bodies: first_of(bodies, "charged", digest=before)["fields"].update(fields))

    return change


def charged_for_the_evaluation() -> Callable[[Files, Identity], None]:
    """Log a charge of the evaluation's round, whose entry says that it is of round 1 of training."""
    charges = priced(held_out=EVALUATION.event("final"))
    names, text = ("charges", "local_charges"), canonical_json(charges).decode()
    return told_apart(dict.fromkeys(names, charges), {"round": ROUNDS + 1, **dict.fromkeys(names, text)})


def says_twice(kind: str, bodies: Records) -> None:
    """Let the amounts of a record have a member that stands twice; the record itself stays in the log's form."""
    fields = first_of(bodies, kind, study=STUDY_HASH)["fields"]
    fields["charges"] = fields["charges"].replace('{"', '{"training":[],"', 1)


def _decided_on(change: Callable[[dict[str, Any]], object]) -> Callable[[Files, Identity], None]:
    """Change the facts of every allowed decision, in file and log alike, as whoever forges a registry would."""

    def tamper(files: Files, key: Identity) -> None:
        decisions, renamed = json.loads(files["decisions.json"]), {}
        for decision in decisions:
            before = entry_digest(decision)
            if decision["allowed"]:
                change(decision["facts"])
                decision["facts_digest"] = entry_digest(decision["facts"])
            renamed[before] = entry_digest(decision)
        files["decisions.json"] = canonical_json(decisions)

        def relog(bodies: Records) -> None:
            for body in bodies:
                if body["kind"] == "decision":
                    body["fields"]["digest"] = renamed[body["fields"]["digest"]]

        rechain(files, key, relog)

    return tamper


def _typed_by_hand(files: Files, key: Identity) -> None:
    """An agreement is typed into the registry, and decisions rest on it."""
    book = json.loads(files["agreements.json"])
    typed = copy.deepcopy(book["agreements"][0])
    typed["terms"]["id"] = "baa-typed"
    edited(files, "agreements.json", lambda book: book["agreements"].append(typed))
    _decided_on(lambda facts: facts["agreements"].append(typed))(files, key)


def _changed_agreement(**terms: Any) -> Callable[[Files, Identity], None]:
    """What an agreement says is changed afterwards, wherever it stands but in the log."""

    def of(agreements: list[dict[str, Any]]) -> None:
        for agreement in agreements:
            if agreement["terms"]["id"] == "baa-centre":
                agreement["terms"].update(terms)

    def tamper(files: Files, key: Identity) -> None:
        edited(files, "agreements.json", lambda book: of(book["agreements"]))
        _decided_on(lambda facts: of(facts["agreements"]))(files, key)

    return tamper


def _opens_otherwise(kind: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Files, Identity], None]:
    def tamper(files: Files, _: Identity) -> None:
        edited(files, "openings.json", lambda entries: change(next(e for e in entries if e["content"]["kind"] == kind)))

    return tamper


def _same_address(files: Files, key: Identity) -> None:
    """Both reviewers are one person under two names, by the e-mail address that was bound."""
    salt, content = "cd" * 32, {"kind": "person", "name": OFFICER, "role": "privacy_officer", "email": STEWARD.upper()}
    edited(files, "openings.json", lambda entries: entries.append({"salt": salt, "content": content}))
    bound = {"commitment": commit(bytes.fromhex(salt), content)}
    rechain(files, key, lambda bodies: first_of(bodies, "person_added", person=OFFICER)["fields"].update(bound))
    _open_only_what_is_bound(files)


def _before(bodies: Records, kind: str, record: dict[str, Any]) -> None:
    at = next(i for i, body in enumerate(bodies) if body["kind"] == kind)
    long_ago = bodies[0]["time"].replace(bodies[0]["time"][:4], "2001", 1)
    bodies.insert(at, {"kind": record.pop("kind"), "fields": record, "time": long_ago})


def widened(bodies: Records, kind: str, **by: str) -> None:
    """Widen the population's cap before anything is reserved, by a record of this kind."""
    opened, reserved = first_of(bodies, "budget_opened"), first_of(bodies, "reserved")
    wider = {**opened, "kind": kind, "time": reserved["time"], "fields": {**opened["fields"], "epsilon": 50.0, **by}}
    bodies.insert(bodies.index(reserved), wider)


def _widened_by(bodies: Records, second: str, ended: bool = False, **person: str) -> None:
    """Widen the cap by the steward and a second person, whom the log enters like this before, if at all."""
    added = first_of(bodies, "person_added", person=OFFICER)
    if person:
        other = {**added, "fields": {**added["fields"], "person": second, "email": second, **person}}
        bodies.insert(bodies.index(added) + 1, other)
    widened(bodies, "budget_widened", entered_by=STEWARD, confirmed_by=second)
    if ended:
        _before(bodies, "budget_widened", {"kind": "person_deactivated", "person": second})


def with_the_key() -> Iterator[Tampered]:
    """Changes that the hospital signed throughout, log and all."""
    cheap = {"training": [{**priced(training=EVALUATION.event("final"))["training"][0], "noise_multiplier": 40.0}]}
    plan = {
        "count": 10,
        "format": 1,
        "mechanism": "poisson_sampled_gaussian",
        "noise_multiplier": 4.0,
        "sampling_rate": 0.1,
    }
    say = "but the approved plan says"
    for what, charges in (
        ("another mechanism, with more noise", cheap),
        ("a smaller rate", {"training": [{**plan, "sampling_rate": 0.01}]}),
        ("fewer steps", {"training": [{**plan, "count": 9}]}),
        ("another partition", {"held_out": [plan]}),
        ("nothing", {}),
    ):
        within = what in ("fewer steps", "nothing")
        words = say if within else "more than was reserved"
        yield Tampered("a charge unlike the plan", what, "charges", words, with_key(_charged_as(charges)))
    yield Tampered(
        "a charge unlike the plan",
        "fewer steps, by one price of two",
        "charges",
        say,
        with_key(_charged_as({"training": [{**plan, "count": 9}]}, local=False)),
    )

    def reserves(bodies: Records, charges: Mapping[str, Any]) -> None:
        text = canonical_json(charges).decode()
        first_of(bodies, "reserved")["fields"].update(charges=text, local_charges=text)

    whole = {"training": [{**plan, "count": 30}], **priced(held_out=EVALUATION.event("final"))}
    for what, changes in (("more steps", {"count": 300}), ("no evaluation", None)):
        reserved = {"training": whole["training"]} if changes is None else {**whole, "training": [{**plan, **changes}]}
        yield Tampered(
            "a reservation unlike the plan", what, "charges", say, in_the_log(partial(reserves, charges=reserved))
        )
    yield Tampered(
        "a reservation unlike the plan",
        "called settled",
        "charges",
        "holds none before it",
        in_the_log(lambda bodies: first_of(bodies, "reserved")["fields"].update(settled=True)),
    )
    yield Tampered(
        "a reservation unlike the plan",
        "of other patients",
        "charges",
        "not the one of the terms",
        in_the_log(lambda bodies: first_of(bodies, "reserved")["fields"].update(population="lung")),
    )
    yield Tampered(
        "a reservation unlike the plan",
        "taken out",
        "charges",
        "was charged without a reservation",
        in_the_log(lambda bodies: bodies.remove(first_of(bodies, "reserved"))),
    )
    text = canonical_json({"training": [{**plan, "count": 1}]}).decode()
    yield Tampered(
        "a charge unlike the plan",
        "in the log alone",
        "charges",
        "charges of round 2 are others in ledger.json",
        in_the_log(lambda bodies: first_of(bodies, "charged", round=2)["fields"].update(charges=text)),
    )
    for what, words, made in (
        (
            "for the evaluation's round",
            "charges round 4, and its entry in ledger.json says 1",
            charged_for_the_evaluation(),
        ),
        (
            "for other patients",
            "charges population heart, and its entry in ledger.json says lung",
            told_apart({"population": "lung"}, {}),
        ),
    ):
        yield Tampered("a charge unlike its entry", what, "charges", words, with_key(made))
    for kind in ("reserved", "charged"):
        yield Tampered(
            "JSON with two readings",
            f"amounts that were {kind}",
            "charges",
            "in the log is not in canonical form",
            in_the_log(partial(says_twice, kind)),
        )
    yield Tampered(
        "over the cap",
        "a smaller promise",
        "caps",
        "above the cap of 0.9",
        in_the_log(lambda bodies: first_of(bodies, "budget_opened")["fields"].update(epsilon=0.9)),
    )
    yield Tampered(
        "over the cap",
        "no promise",
        "caps",
        "has not opened",
        in_the_log(lambda bodies: bodies.remove(first_of(bodies, "budget_opened"))),
    )
    for what, kind, by in (
        ("by nobody", "budget_widened", {}),
        ("by one person", "budget_widened", {"entered_by": STEWARD}),
        ("by one person twice", "budget_widened", {"entered_by": STEWARD, "confirmed_by": STEWARD.upper()}),
        ("called narrower", "budget_narrowed", {"entered_by": STEWARD, "confirmed_by": OFFICER}),
        ("opened again", "budget_opened", {}),
        ("called settled", "budget_settled", {}),
    ):
        yield Tampered(
            "a wider cap",
            what,
            "caps",
            f"({kind}) widens a cap to epsilon 50",
            in_the_log(partial(widened, kind=kind, **by)),
        )
    second, by_no_two = "dan@hospital.example", "not on the word of a steward and a privacy officer"
    for what, words, person in (
        ("by somebody whom nobody entered", "does not know of it before", {}),
        ("by one who was shut out", "which had ended", {"role": "privacy_officer", "ended": True}),
        ("by two stewards", by_no_two, {"role": "steward"}),
        ("by one under two names", by_no_two, {"role": "privacy_officer", "email": STEWARD.upper()}),
    ):
        yield Tampered("a wider cap", what, "caps", words, in_the_log(partial(_widened_by, second=second, **person)))
    other = canonical_json({"training": [{**plan, "count": 900}]}).decode()
    yield Tampered(
        "over the cap",
        "by another study",
        "caps",
        "above the cap of 2.9",
        in_the_log(
            lambda bodies: _before(
                bodies,
                "reserved",
                {
                    "kind": "reserved",
                    "study": "77" * 32,
                    "population": "heart",
                    "charges": other,
                    "local_charges": other,
                },
            )
        ),
    )
    for what, figures, words in (
        ("the population's figure", {"epsilon_after": 3.5}, "above the population's cap"),
        ("the study's figure", {"study_epsilon_after": 2.5}, "above the study's cap"),
        ("a wider cap than promised", {"epsilon_cap": 9.0}, "wider than the log promised"),
        ("a wider cap than reserved", {"study_epsilon_cap": 2.5}, "it was reserved with 2"),
    ):
        yield Tampered(
            "over the cap",
            f"{what}, as decisions have it",
            "caps",
            words,
            with_key(_decided_on(lambda facts, f=figures: facts["budget"].update(f))),
        )
    for what, words, made in (
        (
            "of a decision, when its agreements were in force",
            "rests on facts of 2026-06-30, and record",
            with_key(_decided_on(lambda facts: facts.update(today="2026-06-30"))),
        ),
        (
            "of the log, when its agreements are over",
            "which logs it, is of 2090-11-24",
            in_the_log(lambda bodies: [b.update(time=b["time"].replace("2026", "2090", 1)) for b in bodies]),
        ),
        (
            "by a time of another zone",
            "which is not in UTC",
            in_the_log(lambda bodies: [b.update(time=b["time"].replace("+00:00", "+14:00")) for b in bodies]),
        ),
    ):
        yield Tampered("another day", what, "agreements", words, made)
    yield Tampered(
        "an agreement typed by hand", "and decided on", "agreements", "does not know of it", with_key(_typed_by_hand)
    )
    yield Tampered(
        "an agreement typed by hand",
        "into the registry alone",
        "agreements",
        "agreements.json holds agreement baa-typed",
        with_key(
            lambda files, _: edited(
                files,
                "agreements.json",
                lambda book: book["agreements"].append(
                    {**book["agreements"][0], "terms": {**book["agreements"][0]["terms"], "id": "baa-typed"}}
                ),
            )
        ),
    )
    for what, terms in (
        ("runs longer", {"expires": "2099-12-31"}),
        ("covers more", {"services": ["aggregation", "backup", "model_distribution", "transport"]}),
        ("another document", {"document": "77" * 32}),
    ):
        yield Tampered(
            "an agreement changed by hand",
            what,
            "agreements",
            "it was changed afterwards",
            with_key(_changed_agreement(**terms)),
        )
    yield Tampered(
        "an agreement changed by hand",
        "its end taken out",
        "agreements",
        "which had ended by record",
        in_the_log(
            lambda bodies: _before(
                bodies, "decision", {"kind": "agreement_terminated", "agreement": "irb-heart", "person": STEWARD}
            )
        ),
    )
    yield Tampered(
        "an agreement changed by hand",
        "never confirmed",
        "agreements",
        "nobody confirmed",
        in_the_log(lambda bodies: bodies.remove(first_of(bodies, "agreement_confirmed"))),
    )
    yield Tampered(
        "an agreement changed by hand",
        "confirmed by another",
        "agreements",
        "nobody confirmed",
        in_the_log(lambda bodies: first_of(bodies, "agreement_confirmed")["fields"].update(person=STEWARD)),
    )
    for how, edit in (
        ("entered by nobody", lambda bodies: bodies.remove(first_of(bodies, "agreement_entered"))),
        (
            "entered by who confirms it",
            lambda bodies: first_of(bodies, "agreement_entered")["fields"].update(person=OFFICER),
        ),
    ):
        yield Tampered("an agreement changed by hand", how, "agreements", "nobody else than", in_the_log(edit))
    yield Tampered(
        "an agreement changed by hand",
        "its binding taken out",
        "agreements",
        "binds no content",
        in_the_log(
            lambda bodies: [b["fields"].pop("commitment") for b in bodies if b["kind"] == "agreement_confirmed"]
        ),
    )
    for kind, change in (
        ("agreement", lambda entry: entry["content"]["agreement"].update(entered_by="nobody")),
        ("person", lambda entry: entry["content"].update(email="other@general.example")),
        ("party", lambda entry: entry["content"]["entry"].update(organisation="Other")),
    ):
        yield Tampered(
            "an opening",
            f"another content, of one {kind}",
            "agreements",
            "opens something else",
            with_key(_opens_otherwise(kind, change)),
        )
        yield Tampered(
            "an opening",
            f"another salt, of one {kind}",
            "approvals",
            "opens something else",
            with_key(_opens_otherwise(kind, lambda entry: entry.update(salt="00" * 32))),
        )
    yield Tampered(
        "an opening",
        "left out",
        "parties",
        "does not open",
        with_key(lambda files, _: edited(files, "openings.json", lambda entries: entries.clear())),
    )
    yield Tampered(
        "a person",
        "whom nobody entered",
        "approvals",
        "does not know of it before",
        in_the_log(lambda bodies: bodies.remove(first_of(bodies, "person_added", person=OFFICER))),
    )
    yield Tampered(
        "a person",
        "who was shut out",
        "approvals",
        "which had ended",
        in_the_log(lambda bodies: _before(bodies, "decision", {"kind": "person_deactivated", "person": OFFICER})),
    )
    yield Tampered(
        "a person", "under two names", "approvals", "one person approved in both roles", with_key(_same_address)
    )
    yield Tampered(
        "a person",
        "in another role",
        "approvals",
        "no privacy_officer approved",
        in_the_log(lambda bodies: first_of(bodies, "approved", person=OFFICER)["fields"].update(role="steward")),
    )
    yield Tampered(
        "a party",
        "that nobody pinned",
        "parties",
        "does not know of it before",
        in_the_log(lambda bodies: bodies.remove(first_of(bodies, "pinned", email=HOSPITALS[1]))),
    )
    yield Tampered(
        "a party",
        "whom people had revoked",
        "parties",
        "which had ended",
        in_the_log(lambda bodies: _before(bodies, "decision", {"kind": "unpinned", "email": RESEARCHER})),
    )
    yield Tampered(
        "a party",
        "of another organisation",
        "parties",
        "for Hub, and pinned was Centre",
        with_key(_decided_on(lambda facts: facts["roster"].update(aggregator="Hub"))),
    )
    for format in (1, 2):
        yield Tampered(
            "an older format",
            f"format {format}",
            "audit log",
            f"says format {format}, whose logs bound no agreement",
            with_key(lambda files, _: None, format=format),
        )
    for what, format in (("truth", True), ("text", "3"), ("fraction", 3.0), ("none", None), ("newer", 4)):
        yield Tampered(
            "an older format",
            f"a format that is {what}",
            "index",
            "is not an index of format",
            with_key(lambda files, _: None, format=format),
        )
    for name in ("ledger.json", "decisions.json", "terms.json", "agreements.json", "openings.json"):
        yield Tampered(
            "JSON with two readings",
            name,
            "study" if name == "terms.json" else _CHECKS[name],
            "canonical form",
            with_key(lambda files, _, name=name: files.update({name: files[name].replace(b"{", b'{"!":1,"!":2,', 1)})),
        )
    yield Tampered(
        "a file too many",
        "with a place in the index",
        "index",
        "has no place",
        with_key(lambda files, _: files.update({"notes.txt": b"reviewed"})),
    )
    yield Tampered(
        "a file too few",
        "and none in the index",
        "index",
        "openings.json is missing",
        with_key(lambda files, _: files.pop("openings.json")),
    )

    def signed_in_capitals(path: Path, files: Files, key: Identity) -> None:
        files = resign(files, key)
        pack(path, files | {"index.sig": files["index.sig"].upper().replace(b"\n", b" \n")})

    yield Tampered(
        "a signature", "written otherwise", "signature", "not a signature of 128 hex digits", signed_in_capitals
    )
    other_key = Identity.generate("forger@x.example")
    yield Tampered(
        "a signature",
        "by another key",
        "signature",
        "not the one that you gave",
        lambda path, files, _: pack(path, resign(files, other_key)),
    )
    yield Tampered(
        "a history",
        "a round released twice",
        "releases",
        "released more than once",
        in_the_log(lambda bodies: bodies.append(copy.deepcopy(first_of(bodies, "released", study=STUDY_HASH)))),
    )
    yield Tampered(
        "a history",
        "approved afterwards",
        "approvals",
        "before a steward approved it",
        in_the_log(lambda bodies: bodies.append(bodies.pop(bodies.index(first_of(bodies, "approved", hash=APPROVAL))))),
    )
    yield Tampered(
        "a history",
        "a charge left out",
        "log and files agree",
        "is not in the audit log",
        in_the_log(lambda bodies: bodies.remove(first_of(bodies, "charged", round=2))),
    )


_CHECKS = {
    "ledger.json": "log and files agree",
    "decisions.json": "log and files agree",
    "agreements.json": "agreements",
    "openings.json": "parties",
}
