"""Documents that are filled in from a study: schedule of services, IRB protocol section, data protection summary.

Drafts in Markdown for people to complete and sign. Text from the study is escaped, so that it can't become markup or a
second table row, since whoever submits a study writes it.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from string import Template

from datasites.study.errors import DatasitesError
from datasites.study.identity import same_identity
from datasites.study.manifest import StudyTerms
from policies.registry import Registry

FOLDER = Path(__file__).parent / "templates"
NAMES = ("baa_schedule", "irb_section", "data_protection_summary")


_GUARANTEES = {
    "local": "this holds for what each hospital sends, even if masking fails",
    "distributed": "this holds only for the sum, as long as masking holds and enough hospitals are honest; what one "
    "hospital sends has less noise than that",
}


class TemplateError(DatasitesError, ValueError):
    """There is no such template, or it asks for a value that a study does not have."""


def render(
    name: str, study: StudyTerms, study_hash: str, features: tuple[str, ...], registry: Registry, on: datetime.date
) -> str:
    """Render the document `name` (one of `NAMES`) for a study, as Markdown.

    features: every column that the study reads, the label included. registry: the hospital's, from which the
    agreements in force on that day are named. Raises `TemplateError`.
    """
    if name not in NAMES:
        raise TemplateError(f"template {name!r}: no such document; there are {', '.join(NAMES)}")
    values = {
        "hospital": registry.organisation,
        "today": on.isoformat(),
        "study_hash": study_hash,
        "name": study.name,
        "title": study.title,
        "purpose": study.purpose,
        "description": study.description,
        "irb": study.irb,
        "researcher": study.researcher,
        "organisation": study.organisation,
        "ends": study.ends.isoformat(),
        "hospitals": ", ".join(study.cohort.hospitals),
        "n_hospitals": str(len(study.cohort.hospitals)),
        "min_patients": str(study.cohort.min_patients),
        "colluders": str(study.cohort.colluders),
        "threshold": str(study.cohort.survivors_needed),
        "features": ", ".join(features),
        "n_features": str(len(features)),
        "rounds": str(study.rounds),
        "steps": str(study.training.steps),
        "clip": f"{study.privacy.clip:g}",
        "epsilon": f"{study.privacy.epsilon:g}",
        "delta": f"{study.privacy.delta:g}",
        "guarantee": _GUARANTEES[study.privacy.mode],
    }
    safe = {key: plain(value) for key, value in values.items()}
    safe["services"] = "\n".join(
        f"| {plain(service.kind)} | {plain(service.organisation)} | "
        f"{_agreement(registry, service.kind, service.organisation, on)} |"
        for service in study.services
    )
    text = (FOLDER / f"{name}.md").read_text("utf-8")
    try:
        return Template(text).substitute(safe)
    except (KeyError, ValueError) as error:
        raise TemplateError(f"template {name}: {error} is not a value of a study; correct the template") from error


def plain(text: str) -> str:
    """Return `text` on one line, with everything escaped that Markdown or HTML would give a meaning to."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#!~])", r"\\\1", line)


def _agreement(registry: Registry, service: str, organisation: str, on: datetime.date) -> str:
    if same_identity(organisation, registry.organisation):
        return "none needed: run by this hospital"
    agreement = registry.covers(service, organisation, on)
    if agreement is None:
        return "**none in force**"
    return f"{agreement.terms.id} version {agreement.version}, until {agreement.terms.expires}"
