"""The data scientist's side: look at mock data, rehearse and submit a study, run its rounds, report.

Never imports `hospital`, and no torch: a model is built and scored in the same sandbox that hospitals use.

    >>> from datasites.researcher import Study
    >>> study = Study.load("scripts/heart_disease/study")
    >>> study.terms.name, study.check()  # the verifier's findings
    ('heart-disease', ())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasites.researcher.federation import Federation
    from datasites.researcher.study import Study

__all__ = ["Federation", "Study"]


def __getattr__(name: str) -> Any:
    # When it is asked for: who checks a study's folder needs no federation, and so neither PySyft nor a store.
    if name == "Federation":
        from datasites.researcher.federation import Federation

        return Federation
    if name == "Study":
        from datasites.researcher.study import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
