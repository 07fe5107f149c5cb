"""The answers of the hospital's people to findings on a table (`plausible`): that the table is right, and why.

An answer is a record of the audit log and nothing else, bound like all that people enter (`bindings`), since what it is
about is known here alone: the log shows that somebody answered something on a dataset. It holds for this finding, with
the feature as the study defines it, until somebody revokes it or the finding grows by more than `GROWTH` of the
table. Where the log or the openings are lost, nothing is answered, and the dataset isn't ready: it fails closed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from datasites.hospital.audit.bindings import FIELD, bind, finding_content, is_bound, openings
from datasites.hospital.audit.entered import tell
from datasites.hospital.config import Home
from datasites.hospital.data.findings import FINAL, TableFinding
from datasites.hospital.people.accounts import REVIEWERS, Actor
from datasites.hospital.site import Site
from datasites.study.canonical import canonical_json
from datasites.study.errors import DatasitesError, InputError
from datasites.study.schema import DataModel, SchemaError

#: By so much of the table a finding may grow after it was answered, such as by new patients.
GROWTH = 0.1
KIND = "finding_answered"


class AnswerRefused(DatasitesError):
    """A finding can't be answered as asked; the message says what to do instead."""


def _about(finding: TableFinding, model: DataModel) -> str:
    """Return the public definition that a finding on a feature rests on: another study's is another question."""
    for feature in (*model.features, model.label):
        if feature.name == finding.column:
            return hashlib.sha256(canonical_json(feature.model_dump(mode="json"))).hexdigest()
    return ""


def _answers(home: Home, dataset: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the last answer to each finding of a dataset, by finding and definition; an edited opening is none."""
    answers = {}
    for record in tell(home).answered:
        commitment = str(record.fields.get(FIELD))
        for opening in openings(home, [commitment]):
            content = opening.get("content", {})
            if content.get("kind") == "finding" and is_bound(home, commitment, content):
                answers[content["dataset"], content["finding"], content["about"]] = content
    return {(finding, about): answer for (name, finding, about), answer in answers.items() if name == dataset}


def unanswered(home: Home, dataset: str, found: Iterable[TableFinding], model: DataModel) -> list[TableFinding]:
    """Return the findings that block and that nobody has answered, or that have grown since."""
    answers, left = _answers(home, dataset), []
    for finding in found:
        answer = answers.get((finding.name, _about(finding, model)), {"holds": False})
        holds = answer["holds"] and finding.share <= answer["share"] + GROWTH
        if finding.blocks and (finding.kind in FINAL or not holds):
            left.append(finding)
    return left


def require_answered(home: Home, dataset: str, found: Iterable[TableFinding], model: DataModel) -> None:
    """Raise `SchemaError` with the first findings that block, and how a person answers them."""
    if left := unanswered(home, dataset, found, model):
        texts = "; ".join(f"[{finding.name}] {finding.text}" for finding in left[:3])
        raise SchemaError(
            f"{len(left)} finding(s) on the table: {texts}. Correct the table or mapping.toml; where one is "
            f"right as it is, say why: `datasites dataset accept {dataset} {left[0].name}`"
        )


def answer(
    site: Site, person: Actor, dataset: str, finding: TableFinding, model: DataModel, reason: str, *, holds: bool
) -> None:
    """Enter that a finding is right as it is (`holds`), or that it blocks again; raises `AnswerRefused`."""
    if person.role not in REVIEWERS:
        raise AnswerRefused(f"{person.name} is {person.role}; findings are answered by {' or '.join(REVIEWERS)}")
    if finding.kind in FINAL:
        raise AnswerRefused(f"{finding.name}: this can't be accepted; {finding.text}")
    if not reason.strip():
        raise AnswerRefused(f"{finding.name}: say why it is right; whoever reads the audit log will ask")
    by = {"person": person.name, "role": person.role}
    site.audit.require_fit(KIND, dataset=dataset, commitment="0" * 64, **by)
    content = finding_content(dataset, finding.name, _about(finding, model), finding.share, holds=holds, reason=reason)
    site.audit.append(KIND, dataset=dataset, commitment=bind(site.home, content), **by)


def named(found: Iterable[TableFinding], name: str) -> TableFinding:
    """Return the finding of this name; raises `InputError`, which names those that exist."""
    found = tuple(found)
    for finding in found:
        if finding.name == name:
            return finding
    known = ", ".join(finding.name for finding in found) or "none"
    raise InputError(f"finding {name!r}: not on this table now (there are: {known}); see `datasites dataset check`")
