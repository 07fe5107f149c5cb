"""What a hostile store, a hostile party, or both can do to letters (I10); each test names the line that it defends.

Every test here was seen to fail with that line taken out. If one fails, a datasite trains on what nobody sent.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest

from datasites.control.sealer import WrongBundle, open_keys, syft_fingerprint
from datasites.study.canonical import sha256_hex
from datasites.study.identity import IdentityError
from datasites.study.roster import Roster
from datasites.transport import blobs
from datasites.transport.letter import pack
from datasites.transport.mailroom import AlreadySent, Contents, LetterLimits, Rejected, letter_key
from datasites.transport.store import Store, StoreDenied, StoreError
from tests.transport.parties import HOSPITALS, RESEARCHER, STUDY, Party, make_parties

A, B, C = HOSPITALS
OTHER_STUDY = "b" * 64
BIG = 9_000_000


def on_disk(party: Party, key: str) -> Path:
    return Path(party.store_url, key)


def parts(sender: Party) -> list[Path]:
    return sorted(Path(sender.store_url, "blobs", STUDY, sender.email).iterdir())


def manifest_key(to: str, round: int = 1, study: str = STUDY, sender: str = RESEARCHER) -> str:
    return letter_key(sender, study, to, round, "manifest")


def forged(signer: Party, to: str, **changed) -> bytes:
    """An envelope really signed by `signer` with contents of the attacker's choosing."""
    fields = {
        "sender": signer.email, "recipient": to, "study": STUDY, "round": 1, "kind": "manifest", "body": {"n": 1},
    }  # fmt: skip
    return signer.control.sealer().seal(to, pack(Contents(**{**fields, **changed}), None))


def refused(
    party: Party, expected: str, sender: str = RESEARCHER, study: str = STUDY, round: int = 1, **options
) -> None:
    """The letter is rejected for that reason, kept as evidence, gone from the mailbox, and a wait doesn't return it."""
    before = len(party.mailroom.quarantine.entries())
    with pytest.raises(Rejected, match=expected) as caught:
        party.mailroom.receive(sender, study, round, "manifest", **options)
    assert (caught.value.sender, caught.value.round) == (sender, round)
    kept = party.mailroom.quarantine.entries()
    assert len(kept) == before + 1
    assert caught.value.reason[:500] in kept[-1].reason
    assert party.mailroom.receive(sender, study, round, "manifest", **options) is None
    assert party.mailroom.wait([(sender, study, round, "manifest")], 0.05) == []


def test_garbage_is_refused_and_blocks_nobody(parties, researcher, hospital):
    """`SyftSealer.open`: syft-crypto's verification and its decryption both refuse it."""
    other = parties[2]
    hospital.mailroom.store.put(manifest_key(hospital.email), os.urandom(3000))
    other.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 2})
    refused(hospital, "not a letter that")
    assert hospital.mailroom.receive(other.email, STUDY, 1, "manifest").body == {"n": 2}
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").body == {"n": 1}


def test_forged_sender_is_refused(parties, hospital):
    """`SyftSealer.open`: the signature is checked with the key of the party whose name is on the path."""
    mallory = parties[2]
    envelope = forged(mallory, hospital.email, sender=RESEARCHER)
    hospital.mailroom.store.put(manifest_key(hospital.email), envelope)
    refused(hospital, "not a letter that rita@uni.example signed")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        pytest.param({"study": OTHER_STUDY}, manifest_key(A), id="cross-study"),
        pytest.param({"round": 2}, manifest_key(A), id="cross-round"),
        pytest.param({"kind": "survivors"}, manifest_key(A), id="cross-kind"),
        pytest.param({"recipient": B}, manifest_key(A), id="meant-for-another"),
        pytest.param({"sender": B}, manifest_key(A), id="speaks-for-another"),
    ],
)
def test_letter_under_another_path_is_refused(researcher, hospital, changed, key):
    """`Mailroom.receive`: `if found != wanted`."""
    hospital.mailroom.store.put(key, forged(researcher, hospital.email, **changed))
    refused(hospital, "replay under another path")


def test_replay_of_an_earlier_round_is_refused(researcher, hospital):
    """`Mailroom.receive`: `if found != wanted`, with a letter that was once good."""
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    old = hospital.mailroom.store.get(manifest_key(hospital.email))
    hospital.mailroom.store.put(manifest_key(hospital.email, round=2), old)
    refused(hospital, "replay under another path", round=2)


def test_letter_for_another_recipient_is_refused(parties, researcher, hospital):
    """The envelope is encrypted to one recipient; `SyftSealer.open`: decrypt."""
    researcher.mailroom.send(B, STUDY, 1, "manifest", {"n": 1})
    hospital.mailroom.store.put(manifest_key(hospital.email), hospital.mailroom.store.get(manifest_key(B)))
    refused(hospital, "not a letter that")


def test_equivocation_is_refused(researcher, hospital):
    """`Mailroom.receive`: `if first != digest`."""
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").body == {"n": 1}
    hospital.mailroom.store.put(manifest_key(hospital.email), forged(researcher, hospital.email, body={"n": 2}))
    refused(hospital, "equivocation")


def test_equivocation_is_refused_after_a_restart(researcher, hospital):
    """`Journal.first_seen` is on disk."""
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest")
    hospital.restart()
    hospital.mailroom.store.put(manifest_key(hospital.email), forged(researcher, hospital.email, body={"n": 2}))
    refused(hospital, "equivocation")


def test_finished_round_cannot_be_said_anew(researcher, hospital):
    """`Mailroom.collect` keeps digests."""
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest")
    for party in (researcher, hospital):
        party.mailroom.collect(STUDY, before=2)
    assert researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest") is None, "a collected letter isn't put again"
    with pytest.raises(AlreadySent):
        researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 2})
    hospital.mailroom.store.put(manifest_key(hospital.email), forged(researcher, hospital.email, body={"n": 2}))
    refused(hospital, "equivocation")


@pytest.mark.parametrize("blob", [None, b"small", os.urandom(100_000)], ids=["body", "small", "large"])
def test_sender_refuses_to_say_two_things(researcher, hospital, blob):
    """`Mailroom._same_as_before`; also after a restart (the journal is on disk)."""
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, blob)
    sent = hospital.mailroom.store.get(manifest_key(hospital.email))
    researcher.restart()
    for body, other in (({"n": 2}, blob), ({"n": 1}, b"other"), ({"n": 1}, os.urandom(100_000))):
        with pytest.raises(AlreadySent, match="already sent another manifest"):
            researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", body, other)
    assert hospital.mailroom.store.get(manifest_key(hospital.email)) == sent


def test_resend_is_byte_identical_and_mends(researcher, hospital):
    """`Mailroom._put` and `blobs.upload(mend=True)`: I6."""
    blob = os.urandom(BIG)
    digest = researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, blob)
    files = [on_disk(researcher, manifest_key(hospital.email)), *parts(researcher)]
    before = [file.read_bytes() for file in files]
    researcher.restart()
    assert researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, blob) == digest
    assert [file.read_bytes() for file in files] == before
    for file in files:
        file.write_bytes(os.urandom(file.stat().st_size))
    assert researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, blob) == digest
    assert [file.read_bytes() for file in files] == before
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").blob == blob


def test_a_bit_flipped_anywhere_in_the_envelope_changes_nothing_or_is_refused(researcher, hospital):
    """`SyftSealer.open`. Syft's padding isn't signed: a flip there may pass, and then the letter is the true one."""
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, b"x" * 500)
    key = manifest_key(hospital.email)
    true = hospital.mailroom.store.get(key)
    refusals = 0
    for position in [*range(0, len(true), 97), len(true) - 1]:
        flipped = bytearray(true)
        flipped[position] ^= 1 << position % 8
        hospital.mailroom.store.put(key, flipped)
        try:
            letter = hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest")
        except Rejected:
            refusals += 1
        else:
            assert (letter.body, letter.blob) == ({"n": 1}, b"x" * 500)
    assert refusals > 10


@pytest.mark.parametrize("length", [0, 3, 100, 4000, -1])
def test_truncated_envelope_is_refused(researcher, hospital, length):
    """`SyftSealer.open`: parsing and signature; a proper name must not make a proper letter."""
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, b"x" * 500)
    file = on_disk(hospital, manifest_key(hospital.email))
    file.write_bytes(file.read_bytes()[:length])
    refused(hospital, "not a letter that")


def test_payload_cut_by_its_sender_is_refused(researcher, hospital):
    """`_unpack`: the payload's length is that of the header."""
    contents = Contents(
        sender=RESEARCHER, recipient=hospital.email, study=STUDY, round=1, kind="manifest", body={}, inline=100
    )
    envelope = researcher.control.sealer().seal(hospital.email, pack(contents, b"x" * 99))
    hospital.mailroom.store.put(manifest_key(hospital.email), envelope)
    refused(hospital, "99 payload bytes where its header says 100")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        pytest.param(lambda files: files[1].write_bytes(files[1].read_bytes()[:-1]), "cut off", id="truncated"),
        pytest.param(lambda files: files[1].write_bytes(files[1].read_bytes() + b"x"), "the limit is", id="appended"),
        pytest.param(lambda files: files[1].unlink(), "missing", id="missing"),
        pytest.param(
            lambda files: (files[1].unlink(), (files[1] / "x").mkdir(parents=True)),
            "regular file|directory",
            id="folder",
        ),
        pytest.param(lambda files: files[0].write_bytes(files[1].read_bytes()), "authenticate", id="swapped"),
        pytest.param(
            lambda files: files[0].write_bytes(bytes([files[0].read_bytes()[0] ^ 1]) + files[0].read_bytes()[1:]),
            "authenticate",
            id="bit-flip",
        ),
    ],
)
def test_harmed_blob_is_refused_and_mended_by_a_resend(researcher, hospital, harm, reason):
    """`blobs.download` and `blobs._fetch`."""
    blob = os.urandom(BIG)
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, blob)
    harm(parts(researcher))
    refused(hospital, reason)
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, blob)
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").blob == blob


@pytest.mark.parametrize("how", ["a link", "not ours to read"])
def test_a_blob_that_cannot_be_read_is_its_senders(parties, researcher, hospital, monkeypatch, how):
    """`blobs._fetch`: refused as a bad letter is, and not taken for trouble with the store, which is waited out."""
    blob, box = os.urandom(BIG), Path(researcher.store_url, "blobs", STUDY, RESEARCHER)
    get, denied = Store.get, [how != "a link"]
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, blob)
    if how == "a link":
        box.rename(box.with_name("aside"))
        box.symlink_to("/etc")

    def deny(store, key, limit=None):
        if denied[0] and key.startswith("blobs/"):
            raise StoreDenied(f"{key}: not yours")
        return get(store, key, limit)

    monkeypatch.setattr(Store, "get", deny)
    refused(hospital, "can't be read")
    if how == "a link":
        box.unlink()
        box.with_name("aside").rename(box)
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, blob)
    denied[0] = False
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").blob == blob


def test_recipient_of_a_broadcast_cannot_change_it_for_another(parties, researcher, hospital):
    """`blobs.download`: SHA-256 of the plaintext. B knows the key and makes parts that authenticate."""
    researcher.mailroom.send_all([A, B], STUDY, 1, "manifest", {"n": 1}, os.urandom(BIG))
    inner = parties[2].control.sealer().open(RESEARCHER, parties[2].mailroom.store.get(manifest_key(B)))
    pointer = Contents.parse(inner[4:]).blob
    cipher = blobs.AESGCM(bytes.fromhex(pointer.key))
    first = parts(researcher)[0]
    first.write_bytes(cipher.encrypt(blobs._nonce(0), b"\0" * blobs.PART_BYTES, blobs._place(0, pointer.parts)))
    refused(hospital, "SHA-256 differs")


def test_oversized_blob_is_refused_before_any_download(researcher, hospital):
    """`Mailroom.receive`: `contents.blob.size > limit`. No part exists, so a download would say "missing"."""
    pointer = blobs.Pointer(id="0" * 32, size=10**12, key="0" * 64, sha256="0" * 64)
    hospital.mailroom.store.put(manifest_key(hospital.email), forged(researcher, hospital.email, blob=pointer))
    refused(hospital, "1000000000000 bytes, the limit is")


@pytest.mark.parametrize("size", [5_000, 100_000])
def test_the_receiver_states_the_size_of_a_blob(researcher, hospital, size):
    """`Mailroom.receive`: `max_blob`, for both ways in which a blob travels."""
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1}, os.urandom(size))
    refused(hospital, f"blob of {size} bytes, the limit is 4000", max_blob=4000)


def test_oversized_envelope_is_not_read(tmp_path, researcher, hospital):
    """`Mailroom.receive`: `store.get(key, limit=…)`."""
    file = on_disk(hospital, manifest_key(hospital.email))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as sparse:
        sparse.truncate(10**11)
    refused(hospital, "envelope is larger than")


def test_key_is_never_used_for_two_plaintexts(researcher, hospital):
    """`blobs._derive`: after a crash before the commit, other content under the same path gets another key."""
    secret, pointers = researcher.mailroom._secret, []
    for content in (os.urandom(100_000), os.urandom(100_000)):
        view = memoryview(content)
        pointers.append(
            blobs.upload(researcher.mailroom.store, RESEARCHER, STUDY, 1, "manifest", view, sha256_hex(content), secret)
        )
    assert pointers[0].key != pointers[1].key
    assert pointers[0].id != pointers[1].id


def test_keys_in_the_store_are_not_trusted(tmp_path):
    """`checked_bundle`: fingerprint against the roster (I9). The store replaces a hospital's keys by its own."""
    researcher, hospital, *_ = make_parties(tmp_path, str(tmp_path / "store"))
    mallory = open_keys(hospital.email, tmp_path / "mallory" / "keys.json")
    bundle = Path(researcher.store_url, "identities", hospital.email, "bundle.json")
    true = bundle.read_bytes()
    researcher.control.store.put(
        f"identities/{hospital.email}/bundle.json",
        json.dumps({"public_encryption_bundle": mallory.get_public_bundle()}).encode(),
    )
    with pytest.raises(WrongBundle, match="compare by telephone"):
        researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    assert not on_disk(researcher, manifest_key(hospital.email)).exists()
    bundle.write_bytes(true)
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").body == {"n": 1}


def test_encryption_keys_swapped_under_the_true_identity_key_are_not_trusted(tmp_path):
    """`checked_bundle`: the identity key is the pinned one, the keys to encrypt to are not."""
    researcher, hospital, *_ = make_parties(tmp_path, str(tmp_path / "store"))
    mallory = open_keys(hospital.email, tmp_path / "mallory" / "keys.json").get_public_bundle()
    file = Path(researcher.store_url, "identities", hospital.email, "bundle.json")
    bundle = json.loads(file.read_bytes())["public_encryption_bundle"]
    bundle["keyAgreement"] = mallory["keyAgreement"]
    file.write_text(json.dumps({"public_encryption_bundle": bundle}))
    with pytest.raises(WrongBundle):
        researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})


def test_party_that_is_not_pinned_is_not_heard_and_not_written_to(parties, researcher, hospital):
    """`SyftSealer._know` and `SyftSealer.pin`, which forgets keys of a party that was known before."""
    researcher.mailroom.send(hospital.email, STUDY, 0, "manifest", {"n": 0})
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 0, "manifest").body == {"n": 0}
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    hospital.control.pin(hospital.roster.without(RESEARCHER))
    with pytest.raises(IdentityError, match="is not pinned"):
        hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest")
    assert on_disk(hospital, manifest_key(hospital.email)).exists(), "our roster's fault is not the letter's"
    with pytest.raises(IdentityError, match="is not pinned"):
        hospital.mailroom.send(RESEARCHER, STUDY, 1, "vector", {})


def test_links_and_pipes_in_the_store_are_not_followed(tmp_path, researcher, hospital):
    """`FolderFiles`: O_NOFOLLOW, O_NONBLOCK, and the real path of the folder."""
    secret = tmp_path / "secret"
    secret.write_text("a private file")
    file = on_disk(hospital, manifest_key(hospital.email))
    file.parent.mkdir(parents=True)
    file.symlink_to(secret)
    refused(hospital, "symbolic link")
    os.mkfifo(file)
    refused(hospital, "regular file")
    (file / "deeper").mkdir(parents=True)
    refused(hospital, "regular file|directory")
    assert secret.read_text() == "a private file"
    shutil.rmtree(file.parent)  # with the folder that was put aside
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file.parent.symlink_to(elsewhere)
    with pytest.raises(StoreError, match="link"):
        researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("study", "kind", "round", "to"),
    [
        ("../x", "manifest", 1, A),
        (STUDY, "../../x", 1, A),
        (STUDY, "Manifest", 1, A),
        (STUDY, "manifest", -1, A),
        (STUDY, "manifest", 10**9, A),
        (STUDY, "manifest", 1, "../../etc/x@y.example"),
    ],
)
def test_names_cannot_leave_the_mailbox(researcher, study, kind, round, to):
    """`letter_key`."""
    with pytest.raises(ValueError, match="letter:"):
        researcher.mailroom.send(to, study, round, kind, {})


def test_nothing_legible_lies_in_the_store(parties, researcher, hospital):
    """Canaries in body and blob, small and large, are in no file of the store: raw, base64, or after gunzip."""
    canaries = [b"CANARY_BODY_4711", b"CANARY_SMALL_4711", b"CANARY_LARGE_4711"]
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"x": canaries[0].decode()}, canaries[1] * 10)
    hospital.mailroom.send(RESEARCHER, STUDY, 1, "vector", {}, canaries[2] * 500_000)
    files = [path for path in Path(researcher.store_url).rglob("*") if path.is_file()]
    assert len(files) >= 5
    for path in files:
        data = path.read_bytes()
        with_gunzip = [data]
        with contextlib.suppress(zlib.error):
            with_gunzip.append(zlib.decompress(data, wbits=47))
        for text in with_gunzip:
            for canary in canaries:
                for shift in range(3):
                    coded = base64.b64encode(b"\0" * shift + canary)[4:-4]
                    assert canary not in text
                    assert coded not in text


def test_limits_are_the_receivers(tmp_path):
    """`Limits` of the mailroom, not of the sender."""
    researcher, hospital, *_ = make_parties(tmp_path, str(tmp_path / "store"))
    hospital.stop()
    hospital.start(LetterLimits(body=1000, blob=1_000_000))
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {}, os.urandom(1_000_001))
    refused(hospital, "1000001 bytes, the limit is 1000000")
    assert hospital.roster == Roster(entries=hospital.roster.entries)
    assert hospital.entry().syft_fingerprint == syft_fingerprint(hospital.control._keys)
