"""What rounds charge: together what was reserved, each what it runs, and nothing that is not noised leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datasites.enclave.worker_client import TrainResult
from datasites.hospital.cases.case import OpenCase
from datasites.hospital.models import Round
from datasites.hospital.rounds.row_work import RowWork
from datasites.privacy.events import is_part_of
from datasites.study import letters
from tests.hospital.running import Running
from tests.hospital.unequal import manifests


@pytest.mark.parametrize("local", [False, True], ids=["gated", "against one who sees the vectors"])
def test_all_rounds_together_charge_what_was_reserved_and_no_less(case: OpenCase, local: bool) -> None:
    rounds = [case.round_asked(manifest) for manifest in manifests(case)]
    for partition, whole in case.asked().items():
        charged = [asked[partition] for asked in rounds if partition in asked]
        events = [price.local_event if local else price.event for price in charged]
        reserved = [whole.local_event if local else whole.event]
        assert is_part_of(events, reserved)
        assert is_part_of(reserved, events)


def test_each_round_charges_whom_it_touches_for_what_it_does(case: OpenCase) -> None:
    asked = {manifest.round: case.round_asked(manifest) for manifest in manifests(case)}
    assert set(asked[1]) == {"training"}
    assert set(asked[5]) == {"training", "held_out"}
    assert set(asked[16]) == {"held_out"}
    assert asked[5]["held_out"].event == case.evaluation.event("interim")
    assert asked[16]["held_out"].event == case.evaluation.event("final")
    assert asked[5]["training"].event == asked[1]["training"].event == case.plan.round_event()


def test_where_nobodys_side_is_sure_both_are_charged_for_all_of_it(case: OpenCase) -> None:
    unsure = replace(case, approval_terms=case.approval_terms.model_copy(update={"both_sides": True}))
    for manifest in manifests(case):
        asked, sure = unsure.round_asked(manifest), case.round_asked(manifest)
        assert set(asked) == {"training", "held_out"}
        for price in asked.values():
            assert is_part_of([one.event for one in sure.values()], [price.event])


def test_a_vector_that_was_noised_fewer_times_than_its_plan_says_stays_here(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release policy is told what the trainer has counted, and not what it should have."""
    train = RowWork._train

    def one_step_less(*arguments: object) -> TrainResult:
        result = train(*arguments)  # type: ignore[arg-type]
        return replace(result, steps=result.steps - 1)

    monkeypatch.setattr(RowWork, "_train", one_step_less)
    running.set_up()
    running.open(1)
    running.steps()
    assert running.heard(1, letters.MASKED) is None
    letter = running.heard(1, letters.ABSTAINED)
    assert letter is not None
    assert letter.body == {"outcome": "denied", "controls": ["release"]}
    assert Round.objects.get().state == Round.State.FAILED
    assert "carries no noise" in Round.objects.get().reason
