"""The policy engine: loads the rules, refuses to start on rules that could allow too much, decides, and says why.

Cedar ignores a `forbid` whose evaluation fails, which would let an error allow. So this engine denies whenever Cedar
reports any error, and every other way of not deciding (a fact missing, unknown, malformed or stale, an exception)
ends in a denial too, with a control named. It decides from `Facts` alone and reads nothing but its rule files, once,
when it is made; it does no other I/O. A decision is good for one action, on one approval hash, for a short
while.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import cedarpy
from pydantic import AwareDatetime, ValidationError

from datasites.study.canonical import Agreed, canonical_json, sha256_hex
from datasites.study.errors import DatasitesError
from policies import explain
from policies.controls import CONTROLS
from policies.facts import ACTIONS, Facts, context
from policies.ruleset import PRINCIPAL, SHIPPED, Rule, RuleError, RuleSet

Outcome = Literal["pass", "deny", "not_applicable", "error"]

#: A decision older than this allows nothing.
VALIDITY = datetime.timedelta(minutes=10)


class PolicyDenied(DatasitesError, PermissionError):
    """A decision denies, or is not about what is to be done; the message names every control that denied."""


class RuleResult(Agreed):
    """What one rule said. `law` names what the control serves, as README.md explains.

    outcome "error": some rule could not be evaluated, so what this one would have said does not count.
    """

    control: str
    rule: str
    title: str
    law: str
    outcome: Outcome
    origin: Literal["shipped", "local"]


class Denial(Agreed):
    """One reason for a denial, for the hospital's people."""

    control: str
    rule: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.control.upper()}: {self.reason} {self.remedy}"


class Decision(Agreed):
    """The outcome, with all that is needed to show it and to evaluate it again.

    facts: what was decided on; None when the facts themselves were refused (then `facts_digest` is the digest of what
    was passed, or empty when that had no canonical form). ruleset: digest over schema and every rule, local ones too.
    approval: the approval hash that it is about. (Format 1 called that `study`, and said "frozen" of two things.)
    """

    format: Literal[1, 2] = 2
    allowed: bool
    action: str
    approval: str
    time: AwareDatetime
    denied_by: tuple[Denial, ...]
    results: tuple[RuleResult, ...]
    facts: Facts | None
    facts_digest: str
    ruleset: str

    @property
    def summary(self) -> str:
        """Return one line per reason; "allowed" when there is none."""
        return "\n".join(map(str, self.denied_by)) if self.denied_by else "allowed"

    @property
    def controls(self) -> tuple[str, ...]:
        """Return the names of the controls that denied, sorted: all that another party may be told."""
        return tuple(sorted({denial.control for denial in self.denied_by}))

    def require(self, action: str, approval: str, now: datetime.datetime) -> None:
        """Raise `PolicyDenied` unless it allows `action` on what has this approval hash at `now` (aware datetime)."""
        if (self.action, self.approval) != (action, approval):
            raise PolicyDenied(
                f"policy: this decision is about {self.action} of {self.approval[:12]}…, not {action} of "
                f"{approval[:12]}…; decide again"
            )
        if not self.allowed or self.denied_by:
            raise PolicyDenied(f"policy: {action} is denied.\n{self.summary}")
        if not datetime.timedelta(0) <= now - self.time <= VALIDITY:
            raise PolicyDenied(f"policy: the decision of {self.time.isoformat()} is no longer valid; decide again")


def _without_explanations(decision: Decision) -> Decision:
    # Nor the digest of its facts: that of an older version's is over fewer of them (`read_decision` has compared it).
    denials = tuple(denial.model_copy(update={"reason": "", "remedy": ""}) for denial in decision.denied_by)
    return decision.model_copy(update={"denied_by": denials, "facts_digest": ""})


class Engine:
    """Decides by the rules of `rules_dir` (the shipped ones when None) and, narrower, of `local_dir`.

    Raises `RuleError` when a rule file is missing, malformed, or could allow what it must not.
    """

    def __init__(
        self,
        rules_dir: Path | None = None,
        local_dir: Path | None = None,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._rules = RuleSet.load(rules_dir or SHIPPED, local_dir)
        self._clock = clock
        self._refuse_gaps()

    @property
    def ruleset(self) -> str:
        """Return the digest over schema and rules: two engines with the same digest decide alike."""
        return self._rules.digest

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Return the rules, shipped ones first."""
        return self._rules.rules

    def decide(self, facts: Facts | Mapping[str, Any]) -> Decision:
        """Decide once. Never raises for bad facts: it denies, by the control "facts" or "evaluation"."""
        now = self._clock()
        try:
            known = facts if isinstance(facts, Facts) else Facts.model_validate(dict(facts))
        except (ValidationError, TypeError, ValueError) as error:
            return self._refused(facts, _facts_explanation(error), now)
        return self._decide(known, now)

    def reproduces(self, decision: Decision) -> bool:
        """Return whether these rules, given the stored facts at the stored time, decide as `decision` states.

        Ask it of decisions by this rule set (`ruleset`) and of format 2 only; others rest on other rules or names. The
        words of a denial may be others, since a version may explain a rule better; the audit log binds those stored.
        """
        if decision.facts is None:
            return not decision.allowed
        again = self._decide(decision.facts, decision.time)
        return _without_explanations(again) == _without_explanations(decision)

    def _decide(self, facts: Facts, now: datetime.datetime) -> Decision:
        if abs((now.date() - facts.today).days) > 1:
            explanation = explain.Explanation(
                f"The facts are of {facts.today}, but the clock says {now.date()}.",
                "Gather the facts again; if this repeats, set the datasite's clock.",
            )
            return self._refused(facts, explanation, now)
        outcomes: dict[str, Outcome] = {}
        try:
            outcomes, errors = self._evaluate(facts.action, facts.approval, facts.hospital, context(facts))
        except Exception as error:  # whatever goes wrong here must deny
            errors = [f"{type(error).__name__}: {error}"]
        if not errors and not {"pass", "deny"} & set(outcomes.values()):
            errors = [f"no rule applies to {facts.action}"]
        if errors:
            outcomes = {rule.id: "deny" if outcomes.get(rule.id) == "deny" else "error" for rule in self.rules}
        results = tuple(
            RuleResult(
                control=rule.control,
                rule=rule.id,
                title=rule.title,
                law=rule.law,
                outcome=outcomes[rule.id],
                origin=rule.origin,
            )
            for rule in self.rules
        )
        denials = [self._denial(rule, facts) for rule in self.rules if outcomes[rule.id] == "deny"]
        if errors:
            denials.append(
                Denial(
                    control="evaluation",
                    rule="evaluation",
                    reason=f"The rules could not be evaluated: {'; '.join(errors)}.",
                    remedy="Correct the rule or the fact that is named, then try again.",
                )
            )
        return Decision(
            allowed=not denials,
            action=facts.action,
            approval=facts.approval,
            time=now,
            denied_by=tuple(denials),
            results=results,
            facts=facts,
            facts_digest=facts.digest(),
            ruleset=self.ruleset,
        )

    def _evaluate(
        self, action: str, approval: str, hospital: str, context: dict[str, Any]
    ) -> tuple[dict[str, Outcome], list[str]]:
        """Return outcomes by rule id, and Cedar's errors. Which rules apply is Cedar's answer too, not this code's."""
        request = {
            "principal": {"type": PRINCIPAL, "id": approval},
            "action": {"type": "Action", "id": action},
            "resource": {"type": "Hospital", "id": hospital},
            "context": context,
        }
        rules = self._rules
        answer = cedarpy.is_authorized(request, rules.policies, [], rules.schema)
        scope = cedarpy.is_authorized(request, rules.scopes, [], rules.schema)
        errors = [*answer.diagnostics.errors, *scope.diagnostics.errors]
        fired, applies = set(answer.diagnostics.reasons), set(scope.diagnostics.reasons)
        outcomes: dict[str, Outcome] = {}
        for rule in self.rules:
            if rule.id in fired:
                outcomes[rule.id] = "deny"
            else:
                outcomes[rule.id] = "pass" if rule.id in applies else "not_applicable"
        # Cedar's own verdict must agree with what its reasons say: an allow, or a deny by a rule that is named.
        denied = "deny" in outcomes.values()
        if not errors and answer.decision != (cedarpy.Decision.Deny if denied else cedarpy.Decision.Allow):
            errors.append(f"Cedar answers {answer.decision.value} without naming a rule")
        return outcomes, errors

    def _denial(self, rule: Rule, facts: Facts) -> Denial:
        if rule.origin == "local":
            explanation = explain.Explanation(rule.title, rule.remedy)
        else:
            explanation = explain.explain(rule.id, facts)
        return Denial(control=rule.control, rule=rule.id, reason=explanation.reason, remedy=explanation.remedy)

    def _refused(self, facts: Any, explanation: explain.Explanation, now: datetime.datetime) -> Decision:
        known = facts if isinstance(facts, Facts) else None
        raw = facts if isinstance(facts, Mapping) else {}
        try:
            digest = known.digest() if known else sha256_hex(canonical_json(dict(raw)))
        except (TypeError, ValueError):
            digest = ""
        return Decision(
            allowed=False,
            action=known.action if known else str(raw.get("action", ""))[:40],
            approval=known.approval if known else str(raw.get("approval", ""))[:64],
            time=now,
            denied_by=(Denial(control="facts", rule="facts", reason=explanation.reason, remedy=explanation.remedy),),
            results=(),
            facts=known,
            facts_digest=digest,
            ruleset=self.ruleset,
        )

    def _refuse_gaps(self) -> None:
        # Asked with no facts at all, every shipped rule must deny exactly where it is meant to apply: a rule that
        # passes would let a missing fact allow, and one that doesn't apply would not be asked.
        context = {"approval": "0" * 64, "today": {"__extn": {"fn": "datetime", "arg": "2000-01-01"}}}
        outcomes = {action: self._evaluate(action, "0" * 64, "?", context)[0] for action in ACTIONS}
        for rule in self.rules:
            if rule.origin == "local":
                continue
            answers = {action: outcomes[action].get(rule.id) for action in ACTIONS}
            passing = [action for action in ACTIONS if answers[action] == "pass"]
            if passing:
                raise RuleError(
                    f"{rule.file}: {rule.id} does not deny {', '.join(passing)} when its facts are missing; restore "
                    "the shipped rule file"
                )
            applies = tuple(action for action in ACTIONS if answers[action] == "deny")
            if applies != CONTROLS[rule.id].actions:
                raise RuleError(
                    f"{rule.file}: {rule.id} applies to {', '.join(applies) or 'nothing'} instead of "
                    f"{', '.join(CONTROLS[rule.id].actions)}; restore the shipped rule file"
                )


def read_decision(data: bytes) -> Decision:
    """Read a stored decision (its JSON); raises `ValueError` when it contradicts itself.

    One of format 1 comes without its facts, whose names meant other things: it can be shown, and not evaluated again.
    """
    stored = json.loads(data)
    if stored.get("format") == 1:
        stored = {name: value for name, value in stored.items() if name != "study"} | {
            "approval": stored.get("study"),
            "facts": None,
        }
    decision = Decision.model_validate_json(json.dumps(stored))
    if decision.allowed and (decision.denied_by or not decision.results):
        raise ValueError("decision: it allows, yet names a denial or no rule; it was changed")
    if decision.allowed and decision.facts is None and decision.format != 1:
        raise ValueError("decision: it allows, yet lacks its facts; it was changed")
    # As they were stored: facts of older versions lack some, for which this one takes what they stood for.
    if decision.facts is not None and sha256_hex(canonical_json(stored["facts"])) != decision.facts_digest:
        raise ValueError("decision: its facts do not have the digest that it states; it was changed")
    return decision


def _facts_explanation(error: Exception) -> explain.Explanation:
    if isinstance(error, ValidationError):
        details = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or "facts"
            kind = {"missing": "is missing", "extra_forbidden": "is not a known fact"}.get(item["type"], item["msg"])
            details.append(f"{where} {kind}" if item["type"] in ("missing", "extra_forbidden") else f"{where}: {kind}")
        text = "; ".join(details[:5])
    else:
        text = str(error)
    return explain.Explanation(
        f"The facts are not as the rules need them: {text}.",
        "The datasite could not gather these facts; see its log, correct the cause and try again.",
    )
