"""A run in distributed mode: what the researcher makes of the opened sums, by the study's terms alone."""

from __future__ import annotations

import numpy as np
import pytest

from datasites.aggregator.manifests import manifest_of
from datasites.researcher import report
from datasites.researcher.study import Study
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.errors import BadTerms
from datasites.study.rounds import counts_ring
from tests.researcher.hospitals import GRADIENT, Federation
from tests.study.studies import HEART, distributed_package

pytestmark = pytest.mark.waits


@pytest.fixture
def study() -> Study:
    return Study(HEART, distributed_package())


def test_the_step_is_the_opened_sum_by_the_studys_divisor(federation: Federation) -> None:
    run = federation.run()
    run.complete(progress=False)
    assert [record.outcome for record in run.state.rounds] == ["done"] * 4
    step = -3.0 / (0.3 * 920) * 4 * GRADIENT
    np.testing.assert_allclose(run.model["weight"], 3 * step, rtol=1e-4)
    assert run.state.rounds[0].update_norm == pytest.approx(np.sqrt(5) * abs(step), rel=1e-4)
    assert report.result(run)["rounds"][0]["metrics"]["update_norm"] == run.state.rounds[0].update_norm


@pytest.mark.slow
def test_what_hospitals_say_of_their_noise_is_not_what_intervals_rest_on(federation: Federation) -> None:
    """Each says sd 1.0; what a survivor adds is a term of the study."""
    gone = federation.hospitals["datasite@va.example.org"]
    run = federation.run()
    run.complete(rounds=3, progress=False)
    gone.silent_at.add("masked")
    run.complete(progress=False)
    ring = counts_ring(run.study.terms, "final")
    assert ring is not None
    final = run.state.rounds[-1]
    assert (final.evaluate, len(final.survivors)) == ("final", 3)
    assert final.counts_sigma == pytest.approx(np.sqrt(3) * ring.deviation)
    assert report.result(run)["final"]["counts_noise_sd"] == final.counts_sigma
    assert final.counts[0][0] == pytest.approx(60, abs=0.01)


def test_survivors_acknowledge_one_list_without_being_asked_to(federation: Federation) -> None:
    run = federation.run()
    run.next_round()
    assert run._sum.context.consistency
    assert run._sum.context.honest_contributors == run.study.terms.honest == 2


def test_a_manifest_is_made_by_the_rule_by_which_it_is_checked(federation: Federation, study: Study) -> None:
    run = federation.run()
    run.next_round()
    terms, context = study.terms, run._sum.context
    manifest = manifest_of(terms, run.parameters, context, 2, terms.cohort.hospitals, "a" * 64)
    assert manifest.shared == terms.shared
    assert manifest.threshold == context.threshold == 3


def test_an_epoch_in_which_a_colluder_too_many_hides_is_none(study: Study, federation: Federation) -> None:
    """The context counts honest hospitals by the same rule, so terms that protect nobody set nothing up."""
    terms = study.terms
    with pytest.raises(BadTerms, match="colluder"):
        EpochTerms.from_roster(
            federation.researcher.roster,
            study_hash=study.hash,
            epoch=0,
            aggregator=federation.researcher.email,
            hospitals=terms.cohort.hospitals,
            colluders=2,
            rounds=(1, 2),
            expires=terms.ends,
            threshold=3,
            consistency=True,
        )
