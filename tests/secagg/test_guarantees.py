"""What a round leaves behind: four bytes a coordinate sent, secrets used once and gone."""

from __future__ import annotations

import base64

from tests.secagg.cohort import TODAY, Cohort, assert_exact, email, integers

A = email(0)


def test_a_masked_vector_costs_four_bytes_a_coordinate_and_a_short_header(four):
    manifest = four.manifest()
    four.open(manifest)
    masked = four.mask(A, integers(manifest, [A])[A])
    assert len(masked.payload) == 4 * sum(term.length for term in manifest.vectors)
    assert len(masked.to_bytes()) < 1500


def test_secrets_are_used_once_and_then_gone():
    """Round by round the state loses its keys, seeds and shares; after the last there is none left."""
    cohort = Cohort.of(4).setup()
    for number in (1, 2, 3):
        manifest = cohort.manifest(number)
        before = cohort.states[A].of_round(number)
        inputs = integers(manifest, cohort.members)
        assert_exact(cohort.run_round(inputs, manifest), inputs)
        stored = cohort.states[A].canonical()
        assert cohort.states[A].of_round(number) is None
        # What is left of the round in the file is only what was sent: header, answer, hashes.
        for secret in (before.key, before.seed, before.key_share(1), before.key_share(2)):
            assert base64.b64encode(secret)[:40] not in stored
    assert cohort.states[A].secrets == ()


def test_who_seizes_every_journal_opens_no_bundle_and_no_earlier_round():
    """Of the letters that lie in the store, the key is gone with the last of them; of rounds, with the answer."""
    cohort = Cohort.of(4)
    enrolment = cohort.enrol()
    made = {}
    for name, member in cohort.members.items():
        cohort.states[name], made[name] = member.share(cohort.states[name], enrolment, today=TODAY)
    for name, member in cohort.members.items():
        peers = [peer for peer in cohort.members if peer != name]
        for peer in peers:
            assert cohort.states[name].hpke_private, "needed for the bundles that are still to come"
            cohort.states[name] = member.accept(cohort.states[name], made[peer][name])
        assert cohort.states[name].hpke_private == b""
        assert member.accept(cohort.states[name], made[peers[0]][name]) == cohort.states[name], "again, it is known"
        cohort.states[name], ready = member.ready(cohort.states[name])
        cohort.state = cohort.aggregator.receive_ready(cohort.state, ready)
    cohort.run_round(integers(cohort.manifest(1), cohort.members), cohort.manifest(1))
    cohort.open(cohort.manifest(2))
    for state in cohort.states.values():
        assert [one.round for one in state.secrets] == [2, 3]


def test_round_keys_and_seeds_never_repeat():
    states = [Cohort.of(3, rounds=(1, 20)).setup().states[A] for _ in range(2)]
    secrets = [secret for state in states for one in state.secrets for secret in (one.key, one.seed)]
    assert len(set(secrets)) == len(secrets) == 80
