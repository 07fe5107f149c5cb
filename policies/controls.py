"""The shipped rules once more, as a list: which facts each one needs and which actions it guards.

The rule files decide; this list checks them. An engine starts only when the files hold exactly these rules and each
one applies to exactly these actions, so that neither a lost file nor an edited first line drops a control unnoticed.
"""

from __future__ import annotations

from typing import NamedTuple

from policies.facts import ACTIONS, Action

#: What a group of facts is called, and who supplies it, for denials by a missing fact.
GROUPS = {
    "terms": "the terms of the study",
    "features": "the features that the study asks for",
    "agreements": "the agreements of the registry",
    "budget": "the figures of the privacy ledger",
    "cohort": "the size of the cohort",
    "code": "the findings on the submitted code",
    "approvals": "the approvals of the study",
    "approver": "who is about to approve",
    "state": "the state of the study",
    "sandbox": "whether the sandbox is on",
    "roster": "which parties are pinned",
    "release": "what is about to leave",
}


class Control(NamedTuple):
    """needs: groups of facts without which the rule denies. actions: where it applies."""

    needs: tuple[str, ...]
    actions: tuple[Action, ...]


_TRAINING: tuple[Action, ...] = ("intake", "approve", "run_round")
_REHEARSED: tuple[Action, ...] = ("approve", "run_round")
_REVIEWED: tuple[Action, ...] = ("run_round", "release")

CONTROLS: dict[str, Control] = {
    "baa": Control(("terms", "agreements"), ACTIONS),
    "baa-aggregator": Control(("terms", "roster"), ACTIONS),
    "irb": Control(("terms", "agreements"), ACTIONS),
    "purpose": Control(("terms", "agreements", "features"), ACTIONS),
    "budget-dataset": Control(("budget",), _TRAINING),
    "budget-study": Control(("budget",), _TRAINING),
    "budget-delta": Control(("budget",), _TRAINING),
    "budget-delta-patients": Control(("budget",), _TRAINING),
    "cohort-size": Control(("cohort",), ACTIONS),
    "cohort-threshold": Control(("cohort",), ACTIONS),
    "cohort-patients": Control(("cohort",), ACTIONS),
    "code-verifier": Control(("code",), ACTIONS),
    "code-frozen": Control(("code",), ACTIONS),
    "code-current": Control(("code",), ACTIONS),
    "code-rehearsal": Control(("code",), _REHEARSED),
    "people-approver": Control(("terms", "approvals", "approver"), ("approve",)),
    "people": Control(("terms", "approvals"), _REVIEWED),
    "state-open": Control(("state",), _TRAINING),
    "state-active": Control(("state",), _REVIEWED),
    "state-ends": Control(("terms",), ACTIONS),
    "site-sandbox": Control(("sandbox",), _REHEARSED),
    "site-roster": Control(("roster",), ACTIONS),
    "release-masked": Control(("release",), ("release",)),
    "release-noised": Control(("release",), ("release",)),
    "release-dimension": Control(("release",), ("release",)),
    "release-charged": Control(("release",), ("release",)),
}
