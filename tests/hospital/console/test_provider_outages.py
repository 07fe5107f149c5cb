"""An identity provider that goes away at any moment of a review costs a sentence and another try, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
from axes.models import AccessAttempt
from django.contrib.auth import get_user_model
from django.test import Client, override_settings

from datasites.hospital.models import Case, PolicyDecision, ProviderSubject, Review
from tests.hospital.console.conftest import Console
from tests.hospital.console.providers import QUESTIONS, SECRET, Away, Liar, Person, Real, configured, fresh, oidc

pytestmark = pytest.mark.waits

BOB = "bob@cleveland.example.org"
#: Seconds that the console waits for an answer.
PATIENCE: dict[Away, float] = {"refuses": 10.0, "fails": 10.0, "hangs": 0.3}
KEPT = (get_user_model(), ProviderSubject, Case, Review, PolicyDecision, AccessAttempt)


def kept(console: Console) -> list[object]:
    """All that the hospital keeps of people and their decisions."""
    return [console.desk.site.home.audit.read_bytes(), *(list(model.objects.order_by("pk").values()) for model in KEPT)]


def require_away(console: Console, answer: Any) -> None:
    assert answer.status_code == 503
    assert "identity provider Cleveland is unavailable: " in answer.content.decode()


def reviewers() -> list[str]:
    return sorted(Review.objects.values_list("person__username", flat=True))


@contextmanager
def nothing_kept(console: Console) -> Iterator[None]:
    before = kept(console)
    yield
    assert kept(console) == before


@pytest.mark.slow
@pytest.mark.parametrize("how", get_args(Away))
def test_a_provider_that_goes_away_at_ten_points_of_a_review(
    console: Console, liar: Liar, how: Away, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time it is said, and nothing is kept; each time it is back, the same console goes on."""
    console.desk.agree()
    ann, bob, points = fresh(), fresh(), 0

    def comes_back_once_it_is_back(client: Client, question: str, start: str = "/provider/") -> None:
        nonlocal points
        points += 1
        with liar.away(how, question), override_settings(OIDC_TIMEOUT=PATIENCE[how]), nothing_kept(console):
            require_away(console, liar.comes_back(client, start))
            reached = QUESTIONS[: QUESTIONS.index(question) + (how != "refuses")]
            assert liar.asked == list(reached) or how == "hangs"  # on a busy machine an earlier one may take too long
        assert caplog.text.count("identity provider Cleveland is unavailable: ") == points

    for question in QUESTIONS:
        comes_back_once_it_is_back(ann, question)
        assert ann.get("/cases/").status_code == 302
    assert liar.comes_back(ann).status_code == 302
    for question in QUESTIONS:
        comes_back_once_it_is_back(ann, question, "/provider/?again=1")
        with nothing_kept(console):
            # Still signed in, and nothing confirmed.
            assert b"Sign in again with Cleveland first" in console.decide(ann).content
    assert liar.comes_back(ann, "/provider/?again=1").status_code == 302
    assert console.decide(ann).status_code == 302
    assert reviewers() == ["ann"]

    liar.honest("43", BOB)
    for question in QUESTIONS:
        comes_back_once_it_is_back(bob, question)
    assert liar.comes_back(bob).status_code == 302
    assert liar.comes_back(bob, "/provider/?again=1").status_code == 302
    points += 1
    # What was confirmed while it was there is good for one decision, and whoever is signed in goes on reading.
    with liar.away(how, QUESTIONS[0]):
        assert console.decide(bob).status_code == 302
        assert bob.get("/cases/").status_code == 200
        assert liar.asked == []
    assert reviewers() == ["ann", "bob"]
    assert Case.objects.get(pk=console.number).state == Case.State.APPROVED
    assert points == 10
    assert caplog.text.count("tried again at the next sign-in") == points - 1
    assert SECRET not in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.slow
def test_a_real_provider_that_is_killed_or_hangs_signs_in_again_once_it_is_back(console: Console, real: Real) -> None:
    """Nothing of its earlier run is needed: neither its keys nor its sessions."""
    with configured(oidc(real.base)):
        for _ in range(2):
            ann = Person()
            way = ann.way_back("ann")
            real.stop()
            with nothing_kept(console):
                require_away(console, ann.here.get(way))
            real.start()
            assert ann.sign_in("ann").status_code == 302
            assert ann.here.get("/cases/").status_code == 200
            way = ann.way_back("ann", "/provider/?again=1")
            with real.hanging(), override_settings(OIDC_TIMEOUT=0.2), nothing_kept(console):
                require_away(console, ann.here.get(way))
            assert ann.sign_in("ann", "/provider/?again=1").status_code == 302
