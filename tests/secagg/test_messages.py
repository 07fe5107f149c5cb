"""Messages (I10): one byte string each, refused when a single field is changed, secrets never printed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasites.secagg.errors import BadMessage, UnknownParty
from datasites.secagg.member import Member
from datasites.secagg.messages import Certificate, MaskedVector, Message, Ready, UnmaskShares
from datasites.secagg.state import MemberState
from datasites.study.identity import Identity
from tests.secagg.attacker import reseal
from tests.secagg.cohort import Cohort, email, integers


@pytest.fixture(scope="module")
def sent() -> dict[str, tuple[Message, str]]:
    """One message of each kind, as made in a real round, with its sender's public key."""
    cohort = Cohort.of(4, consistency=True)
    enrolment = cohort.enrol()
    certificate = enrolment.certificates[0]
    me = email(0)
    bundles = {}
    for name, member in cohort.members.items():
        cohort.states[name], bundles[name] = member.share(cohort.states[name], enrolment, today=_today())
    for name in cohort.members:
        for peer in cohort.members:
            if peer != name:
                cohort.states[name] = cohort.members[name].accept(cohort.states[name], bundles[peer][name])
    ready = []
    for name, member in cohort.members.items():
        cohort.states[name], one = member.ready(cohort.states[name])
        cohort.state = cohort.aggregator.receive_ready(cohort.state, one)
        ready.append(one)
    manifest = cohort.manifest()
    cohort.open(manifest)
    cohort.collect(integers(manifest, cohort.members), cohort.members)
    survivors = cohort.survivors()
    acks = cohort.acks(survivors, cohort.members)
    answer = cohort.answer(me, survivors, acks)
    hospital = cohort.context.keys[me]
    aggregator = cohort.context.aggregator.public_key
    signed = cohort.state.record.round.signed
    return {
        one.kind: (one, key)
        for one, key in [
            (certificate, hospital),
            (enrolment, aggregator),
            (bundles[me][email(1)], hospital),
            (ready[0], hospital),
            (signed, aggregator),
            (survivors.headers[0], hospital),
            (survivors, aggregator),
            (acks.acks[0], hospital),
            (acks, aggregator),
            (answer, hospital),
            (answer.mark, hospital),
        ]
    }


def _today():
    from tests.secagg.cohort import TODAY

    return TODAY


KINDS = [kind.kind for kind in Message.__subclasses__()]


def test_every_kind_is_here(sent):
    assert sorted(sent) == sorted(KINDS)
    assert len(set(KINDS)) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_there_and_back(sent, kind):
    message, key = sent[kind]
    again = type(message).from_bytes(message.to_bytes())
    assert again == message
    assert again.to_bytes() == message.to_bytes()
    again.check_signature(key)


def _spelt(message: Message, text: bytes) -> bytes:
    """The message as sent, with `text` in the place of its canonical bytes."""
    return len(text).to_bytes(4, "big") + text + message.commitments if isinstance(message, Ready) else text


def _altered(value):
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        # Stays a valid hash, base64 text or e-mail, so that only the signature can tell.
        first = value[:1]
        return ("b" if first == "a" else "a") + value[1:] if value else "a"
    if isinstance(value, list):
        return value[1:] if value else [0]
    key = sorted(value)[0]
    return {**value, key: _altered(value[key])}


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_can_be_changed(sent, kind):
    message, key = sent[kind]
    plain = json.loads(message.canonical())
    for name in plain:
        changed = json.dumps(
            {**plain, name: _altered(plain[name])}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        assert changed != message.canonical()
        with pytest.raises(BadMessage):
            type(message).from_bytes(_spelt(message, changed)).check_signature(key)


@given(
    kind=st.sampled_from(KINDS), at=st.floats(0, 1, exclude_max=True), new=st.binary(max_size=3), cut=st.integers(0, 2)
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_are_refused_by_name(sent, kind, at, new, cut):
    """Whatever bytes come, the one error that a caller quarantines is `BadMessage`."""
    message, key = sent[kind]
    data = message.to_bytes()
    place = int(at * len(data))
    damaged = data[:place] + new + data[place + cut :]
    if damaged != data:
        with pytest.raises(BadMessage):
            type(message).from_bytes(damaged).check_signature(key)


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: ('{"' + text + '":[[[').encode()))
def test_noise_is_no_message(data):
    for kind in Message.__subclasses__():
        with pytest.raises(BadMessage):
            kind.from_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_other_spellings_of_the_same_value_are_refused(sent, kind):
    message, _ = sent[kind]
    plain = json.loads(message.canonical())
    spaced = json.dumps(plain, sort_keys=True).encode()
    unsorted = json.dumps(dict(reversed(plain.items())), separators=(",", ":")).encode()
    doubled = b'{"context":"' + b"0" * 64 + b'",' + message.canonical()[1:]
    unknown = json.dumps({**plain, "more": 1}, sort_keys=True, separators=(",", ":")).encode()
    for other in (spaced, unsorted, doubled, unknown, b"", b"{}", b"\xff"):
        for data in (other, _spelt(message, other)):
            with pytest.raises(BadMessage):
                type(message).from_bytes(data)


def test_commitments_are_signed_and_sent_once(sent):
    ready, key = sent["ready"]
    assert len(ready.to_bytes()) < len(ready.commitments) + 1000
    for other in (b"", ready.commitments[:-1], ready.commitments + b"0", bytes(len(ready.commitments))):
        with pytest.raises(BadMessage, match="signature"):
            ready.model_copy(update={"commitments": other}).check_signature(key)
    within = json.dumps({**json.loads(ready.canonical()), "commitments": ""}, sort_keys=True, separators=(",", ":"))
    with pytest.raises(BadMessage, match="canonical"):
        Ready.from_bytes(_spelt(ready, within.encode()))


def test_a_signature_of_one_kind_does_not_serve_another(sent):
    ack, key = sent["survivor-ack"]
    for kind in KINDS:
        other, _ = sent[kind]
        if kind != "survivor-ack":
            with pytest.raises(BadMessage):
                ack.model_copy(update={"signature": other.signature}).check_signature(key)
    # The same content signed in the domain of another kind.
    identity = Identity.generate("a@h.example.org")
    forged = ack.model_copy(update={"signature": identity.sign("secagg/other", ack.signed_part()).hex()})
    with pytest.raises(BadMessage):
        forged.check_signature(identity.public_key)


def test_a_refusal_does_not_quote_shares(sent):
    answer, _ = sent["unmask-shares"]
    plain = json.loads(answer.to_bytes())
    for broken in ({**plain, "round": "x"}, {**plain, "shares": plain["shares"] + "!"}):
        with pytest.raises(BadMessage) as caught:
            UnmaskShares.from_bytes(json.dumps(broken).encode())
        assert plain["shares"][:20] not in str(caught.value)
        assert caught.value.__cause__ is None


def test_secrets_are_not_printed_nor_quoted(four):
    state = four.states[email(0)]
    secret = state.secrets[0]
    shown = repr(state) + str(state) + repr(state.secrets[0])
    for hidden in (secret.key, secret.seed, secret.held[:32]):
        assert repr(hidden)[2:-1][:24] not in shown
    assert MemberState.parse(state.canonical()) == state


def test_a_payload_must_be_the_one_its_header_signs(four):
    manifest = four.manifest()
    four.open(manifest)
    masked = four.mask(email(0), integers(manifest, four.members)[email(0)])
    other = bytearray(masked.payload)
    other[5] ^= 1
    for payload in (bytes(other), bytes(masked.payload)[:-4], b""):
        with pytest.raises(BadMessage, match="payload"):
            MaskedVector.from_bytes(masked.to_bytes(), payload)
        with pytest.raises(BadMessage, match="payload"):
            four.aggregator.receive(four.state, MaskedVector(masked.header, payload))
    # A sender that signs another length than it sends.
    longer = reseal(masked.header, four.members[email(0)].identity, dimension=39)
    with pytest.raises(BadMessage, match="payload"):
        MaskedVector.from_bytes(longer.to_bytes(), masked.payload)
    assert masked.vector().dtype == np.dtype("<u4")
    assert len(masked.payload) == 4 * 38


def test_only_parties_of_the_terms_play(four):
    stranger = Identity.generate("stranger@h.example.org")
    with pytest.raises(UnknownParty):
        Member(stranger, four.context)
    with pytest.raises(UnknownParty):
        Member(Identity.generate(email(0)), four.context)
    certificate = four.state.enrolment.certificates[0]
    by_stranger = Certificate.seal(stranger, **{k: v for k, v in certificate if k not in ("sender", "signature")})
    with pytest.raises(UnknownParty):
        four.aggregator.receive_certificate(four.state, by_stranger, today=_today())
