"""What a malicious aggregator or hospital can do in the tests: sign anything, skip its own checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from datasites.secagg.messages import MaskedHeader, SurvivorList
from datasites.secagg.state import MemberState
from datasites.study.identity import Identity
from datasites.study.manifest import RoundManifest
from tests.secagg.cohort import TODAY, Cohort, email, integers

A, B, C, D = (email(i) for i in range(4))


def survivor_list(cohort: Cohort, headers: Iterable[MaskedHeader], **changes: Any) -> SurvivorList:
    """A survivor list as a malicious aggregator signs it."""
    opened = cohort.state.record.round
    assert opened is not None
    manifest = opened.signed.manifest
    fields = {"round": manifest.round, "manifest": manifest.digest(), "headers": tuple(headers), **changes}
    return SurvivorList.seal(cohort.aggregator.identity, context=cohort.context.digest(), **fields)


def begun(cohort: Cohort, masking: Iterable[str] | None = None, number: int = 1) -> tuple[Any, dict[str, Any]]:
    """A round opened at all, vectors made by `masking` (default: all); returns inputs and vectors."""
    manifest = cohort.manifest(number)
    inputs = integers(manifest, cohort.members)
    cohort.open(manifest)
    names = cohort.members if masking is None else masking
    return inputs, {name: cohort.mask(name, inputs[name]) for name in names}


def opened_by(cohort: Cohort, name: str, manifest: RoundManifest, state: MemberState | None = None) -> MemberState:
    return cohort.members[name].open(state or cohort.states[name], cohort.signed(manifest), today=TODAY)


def reseal(message: Any, identity: Identity, **changes: Any) -> Any:
    """The same message with some fields changed, signed by whoever wants to."""
    fields = {name: value for name, value in message if name not in ("sender", "signature")}
    return type(message).seal(identity, **{**fields, **changes})
