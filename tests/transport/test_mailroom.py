"""Letters: what honest parties may rely on, restarts and races included; attacks are in tests/adversarial."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasites.study.roster import Roster
from datasites.transport.journal import MailJournal, SentMessage
from datasites.transport.mailroom import AlreadySent, Mailroom, Rejected, Undelivered, letter_key
from datasites.transport.store import Store, StoreDenied, StoreFull, StoreUnreachable
from tests.transport.parties import RESEARCHER, STUDY, make_parties


def test_a_letter_arrives_with_its_body_and_blob(parties):
    researcher, hospital, *_ = parties
    vector = np.arange(300_000, dtype=np.uint32)
    digest = researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 1, "x": [0.5, None]}, vector.data)
    letter = hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest")
    assert (letter.body, letter.digest) == ({"n": 1, "x": [0.5, None]}, digest)
    assert (np.frombuffer(letter.blob, dtype=np.uint32) == vector).all()
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest") == letter


@pytest.mark.parametrize("size", [None, 0, 1, 64 * 1024, 64 * 1024 + 1, 4 << 20, (4 << 20) + 1])
def test_blobs_of_every_length(parties, size):
    researcher, hospital, *_ = parties
    blob = None if size is None else os.urandom(size)
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {}, blob)
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").blob == blob


def test_a_broadcast_encrypts_its_blob_once(parties):
    researcher, *hospitals = parties
    blob = os.urandom(5_000_000)
    researcher.mailroom.send_all([h.email for h in hospitals], STUDY, 1, "manifest", {}, blob)
    assert len(researcher.mailroom.store.list(f"blobs/{STUDY}/{RESEARCHER}")) == 2
    for hospital in hospitals:
        assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").blob == blob


def test_what_the_store_says_of_one_mailbox_keeps_a_letter_from_nobody_else(parties, monkeypatch):
    """Also if it says that it has no room, or is unavailable: this is believed if it says so of all, or for long."""
    researcher, *hospitals = parties
    emails, room, away, tried = [one.email for one in hospitals], researcher.mailroom, set[str](), []
    put = room.store.put

    def fails(key: str, data: bytes) -> None:
        tried.append(key)
        if key.split("/")[2] in away:
            raise (StoreFull if key.split("/")[2] == emails[0] else StoreUnreachable)(key)
        put(key, data)

    monkeypatch.setattr(room.store, "put", fails)
    away.update(emails[:2])
    with pytest.raises(Undelivered) as caught:
        room.send_all(emails, STUDY, 1, "round", {})
    assert list(caught.value.failures) == emails[:2]
    assert hospitals[2].mailroom.receive(RESEARCHER, STUDY, 1, "round") is not None
    away.update(emails)
    for longest, times in ((60.0, 3), (-1.0, 1)):
        monkeypatch.setattr("datasites.transport.mailroom.AWAY_SECONDS", longest)
        tried.clear()
        with pytest.raises(StoreFull if times == 1 else StoreUnreachable):
            room.send_all(emails, STUDY, 2, "round", {})
        assert len(tried) == times
    away.clear()
    room.send_all(emails, STUDY, 2, "round", {})
    assert hospitals[0].mailroom.receive(RESEARCHER, STUDY, 2, "round") is not None


def test_a_file_in_place_of_a_mailbox_keeps_a_letter_from_nobody(parties):
    researcher, hospital, other, _ = parties
    box = Path(hospital.store_url, "mail", STUDY, hospital.email)
    box.parent.mkdir(parents=True)
    box.write_bytes(b"")
    researcher.mailroom.send_all([hospital.email, other.email], STUDY, 1, "round", {})
    for one in (hospital, other):
        assert one.mailroom.receive(RESEARCHER, STUDY, 1, "round") is not None


def test_a_letter_to_all_is_committed_for_all_before_it_is_put_for_any(parties, monkeypatch):
    """A crash in between leaves nobody an envelope that is not put again byte for byte."""
    researcher, *hospitals = parties
    emails, room = [one.email for one in hospitals], researcher.mailroom
    keys = [letter_key(RESEARCHER, STUDY, email, 1, "round") for email in emails]

    def killed(key: str, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room.store, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        room.send_all(emails, STUDY, 1, "round", {})
    committed = [room._journal.sent(key).envelope for key in keys]
    researcher.restart().mailroom.send_all(emails, STUDY, 1, "round", {})
    assert [researcher.mailroom.store.get(key) for key in keys] == committed
    for hospital in hospitals:
        assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round") is not None


def test_what_the_journal_writes_of_a_letter_to_all_is_hardly_more_than_its_envelopes(tmp_path):
    log, envelope = tmp_path / "mailroom.sqlite-wal", os.urandom(1500)
    costs = []
    for count in (10, 100):
        journal = MailJournal(tmp_path / "mailroom.sqlite")
        before = log.stat().st_size
        paths = [
            letter_key(RESEARCHER, STUDY, f"h{number:03d}@clinic.example", count, "round") for number in range(count)
        ]
        journal.commit(STUDY, count, {path: SentMessage("0" * 64, "1" * 64, envelope) for path in paths})
        costs.append((log.stat().st_size - before) / count)
        journal.close()
    assert costs[1] < 1.2 * costs[0]
    assert max(costs) < 1.5 * 4096, "a page for each, where a transaction for each writes four"


@pytest.mark.waits
def test_waiting_returns_what_has_come(parties):
    researcher, *hospitals = parties
    expected = [(h.email, STUDY, 1, "vector") for h in hospitals]
    room = researcher.mailroom
    assert room.wait(expected, 0.05) == []

    def answer():
        for hospital in hospitals[:2]:
            time.sleep(0.1)
            hospital.mailroom.send(RESEARCHER, STUDY, 1, "vector", {})

    thread = threading.Thread(target=answer)
    thread.start()
    assert room.wait(expected, 20) in ([expected[0]], expected[:2])
    thread.join()
    assert room.wait(expected, 0.3, want="all") == expected[:2]
    stop = threading.Event()
    stop.set()
    start = time.monotonic()
    assert room.wait([expected[2]], 30, stop=stop) == []
    assert time.monotonic() - start < 10


def test_collecting_keeps_running_rounds_and_the_setup(parties):
    researcher, hospital, *_ = parties
    for round in (0, 1, 2, 3):
        researcher.mailroom.send(hospital.email, STUDY, round, "manifest", {"round": round}, os.urandom(70_000))
    for party in (researcher, hospital):
        party.mailroom.collect(STUDY, before=3)
    for round, there in ((0, True), (1, False), (2, False), (3, True)):
        letter = hospital.mailroom.receive(RESEARCHER, STUDY, round, "manifest")
        assert (letter is not None) == there


def test_a_flood_of_names_is_collected_in_parts_and_hides_no_letter(parties, monkeypatch):
    researcher, hospital, *_ = parties
    monkeypatch.setattr("datasites.transport.mailroom.MOST_REMOVED", 3)
    for round in (1, 2):
        researcher.mailroom.send(hospital.email, STUDY, round, "manifest", {})
    mailbox = Path(hospital.store_url, "mail", STUDY, hospital.email)
    for number in range(5):
        (mailbox / f"1.{number}").touch()
    assert [hospital.mailroom.collect(STUDY, before=3) for _ in range(4)] == [3, 3, 1, 0]
    for number in range(5):
        (mailbox / f"1.{number}").touch()
    researcher.mailroom.send(hospital.email, STUDY, 3, "manifest", {})
    assert hospital.mailroom.collect(STUDY, before=4) == 3
    assert hospital.mailroom.mailbox(STUDY) == [], "letters go first"


def test_collecting_kinds_keeps_the_others_and_says_nothing_anew(parties):
    """Of one round: letters to us go from the store, our own envelopes from the journal, our blobs where asked."""
    researcher, hospital, *_ = parties
    payload = os.urandom(70_000)
    for kind in ("offer-0", "shares-0", "shares-1", "close"):
        researcher.mailroom.send(hospital.email, STUDY, 0, kind, {"kind": kind}, payload)
        researcher.mailroom.send(hospital.email, STUDY, 1, kind, {"kind": kind})
    blobs = Path(researcher.store_url, "blobs", STUDY, RESEARCHER)
    Path(hospital.store_url, "mail", STUDY, hospital.email, "00000000.no-letter").touch()
    assert hospital.mailroom.collect_kinds(STUDY, 0, lambda kind: kind.endswith("-0")) == 2
    assert hospital.mailroom.mailbox(STUDY) == [
        (0, "close", RESEARCHER),
        (0, "shares-1", RESEARCHER),
        *((1, kind, RESEARCHER) for kind in ("close", "offer-0", "shares-0", "shares-1")),
    ]
    assert researcher.mailroom.collect_kinds(STUDY, 0, lambda kind: kind.endswith("-0")) == 0
    assert list(blobs.iterdir())
    assert researcher.mailroom.collect_kinds(STUDY, 0, lambda kind: kind.endswith("-0"), blobs_too=True) == 4
    assert not list(blobs.iterdir())
    researcher.mailroom.send(hospital.email, STUDY, 0, "offer-0", {"kind": "offer-0"}, payload)
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 0, "offer-0") is None, "a collected letter isn't put again"
    with pytest.raises(AlreadySent):
        researcher.mailroom.send(hospital.email, STUDY, 0, "shares-0", {"kind": "another"}, payload)
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "offer-0") is not None


def test_an_envelope_that_is_lost_again_and_again_costs_its_sender_envelopes(parties, monkeypatch):
    """And not its blob: that is read back ever more rarely."""
    researcher, hospital, *_ = parties
    blob, room, read = os.urandom(9_000_000), researcher.mailroom, []
    room.send(hospital.email, STUDY, 1, "model", {}, blob)
    get = room.store.get

    def counted(key, **options):
        found = get(key, **options)
        if key.startswith("blobs"):
            read[-1].append(key)
        return found

    monkeypatch.setattr(room.store, "get", counted)
    (envelope,) = Path(researcher.store_url, "mail", STUDY, hospital.email).iterdir()
    for _ in range(17):
        read.append([])
        envelope.unlink()
        room.send(hospital.email, STUDY, 1, "model", {}, blob)
        assert envelope.exists()
    assert {times: len(keys) for times, keys in enumerate(read, 1) if keys} == dict.fromkeys((1, 2, 4, 8, 16), 3)
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "model").blob == blob


@pytest.mark.parametrize("lost", ["gone", "cut", "changed"])
def test_a_part_of_a_blob_that_the_store_has_lost_is_put_again(parties, lost):
    researcher, hospital, *_ = parties
    blob = os.urandom(5_000_000)
    researcher.mailroom.send(hospital.email, STUDY, 1, "model", {}, blob)
    part = min(Path(researcher.store_url, "blobs", STUDY, RESEARCHER).iterdir())
    whole = part.read_bytes()
    if lost == "gone":
        part.unlink()
    else:
        part.write_bytes(whole[:-1] if lost == "cut" else bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(Rejected):
        hospital.mailroom.receive(RESEARCHER, STUDY, 1, "model")
    researcher.mailroom.send(hospital.email, STUDY, 1, "model", {}, blob)
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "model").blob == blob


def test_an_upload_broken_off_is_the_same_after_a_restart(parties):
    """Killed between the blob and the commit: the next try makes the same parts, and one letter results."""
    researcher, hospital, *_ = parties
    blob = os.urandom(5_000_000)
    digest = researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {}, blob)
    folder = Path(researcher.store_url, "blobs", STUDY, RESEARCHER)
    parts = {path.name: path.read_bytes() for path in folder.iterdir()}
    researcher.mailroom._journal._database.execute("DELETE FROM sent")
    researcher.restart()
    assert researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {}, blob) == digest
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == parts


@pytest.fixture
def remote(tmp_path):
    """A researcher and a hospital over a store that isn't a local folder (fsspec's own in-memory filesystem)."""
    parties = make_parties(tmp_path, f"memory://{os.urandom(6).hex()}", hospitals=("a@h.example",))
    yield parties
    for party in parties:
        party.stop()


def test_a_download_broken_off_goes_on_where_it_was(remote, monkeypatch):
    researcher, hospital = remote
    blob = os.urandom(9_000_000)
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {}, blob)
    files, fetched = hospital.mailroom.store.files, []
    real = files.read

    def read(key, limit, fail_at=".000002"):
        if key.endswith(fail_at):
            raise PermissionError("the store went away")
        if key.startswith("blobs"):
            fetched.append(key[-7:])
        return real(key, limit)

    def denied(folder):
        raise PermissionError("our credentials are no longer good")

    monkeypatch.setattr(files, "read", read)
    monkeypatch.setattr(files, "walk", denied)
    with pytest.raises(StoreDenied):
        hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest")
    assert fetched == [".000000", ".000001"]
    fetched.clear()
    hospital.restart()
    files = hospital.mailroom.store.files
    monkeypatch.setattr(files, "read", lambda key, limit: read(key, limit, fail_at="never"))
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").blob == blob
    assert fetched == [".000002"]
    assert not list((hospital.home / "state" / "mail" / "partial").iterdir())


def test_an_upload_broken_off_goes_on_where_it_was(remote, monkeypatch):
    researcher, hospital = remote
    blob = os.urandom(9_000_000)
    files, put = researcher.mailroom.store.files, []
    real = files.write

    def write(key, data, fail_at=".000002"):
        if key.endswith(fail_at):
            raise PermissionError("the store went away")
        put.append(key)
        real(key, data)

    monkeypatch.setattr(files, "write", write)
    with pytest.raises(StoreDenied):
        researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {}, blob)
    assert [key[-7:] for key in put] == [".000000", ".000001"]
    put.clear()
    researcher.restart()
    files = researcher.mailroom.store.files
    monkeypatch.setattr(files, "write", lambda key, data: write(key, data, fail_at="never"))
    researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {}, blob)
    assert [key[-7:] for key in put if key.startswith("blobs")] == [".000002"]
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").blob == blob


KILLED = """
import sys
from pathlib import Path
from datasites.study.roster import Roster
from datasites.transport.mailroom import Mailroom
from datasites.control.sealer import SyftSealer, open_keys
from datasites.transport.store import Store, StoreDenied
email, to, url, state, roster = sys.argv[1:6]
store = Store(url)
fetch = lambda who: store.get(f"identities/{who}/bundle.json")
sealer = SyftSealer(open_keys(email, Path(state) / "syft_keys.json"), Roster.load(Path(roster)), fetch)
room = Mailroom(email, store, sealer, Path(state) / "mail")
print("ready", flush=True)
for round in range(1, 1000):
    room.send(to, "s", round, "vector", {"round": round}, bytes([round % 256]) * 100_000)
    print(round, flush=True)
"""


@pytest.mark.slow
@pytest.mark.waits
def test_kill_9_while_sending_leaves_each_letter_absent_or_whole_and_sent_once(parties, tmp_path):
    """I6: at 8 moments. What was sent again afterwards is what was sent before; nothing is half there."""
    hospital, researcher = parties[1], parties[0]
    hospital.stop()
    roster = tmp_path / "roster.json"
    Roster(entries=hospital.roster.entries).save(roster)
    arguments = [hospital.email, RESEARCHER, hospital.store_url, str(hospital.home / "state"), str(roster)]
    seen: dict[int, str] = {}
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.005 + 0.019 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        round = 1
        while (letter := researcher.mailroom.receive(hospital.email, "s", round, "vector")) is not None:
            assert (letter.body, letter.blob) == ({"round": round}, bytes([round % 256]) * 100_000)
            assert seen.setdefault(round, letter.digest) == letter.digest
            round += 1
    assert len(seen) >= 5
    assert researcher.mailroom.quarantine.entries() == []


@pytest.mark.waits
def test_two_processes_with_one_journal_say_one_thing(parties):
    """`MailJournal.commit`: the first wins, the second raises."""
    researcher, hospital, *_ = parties
    second = Mailroom(
        RESEARCHER, researcher.mailroom.store, researcher.control.sealer(), researcher.home / "state/mail"
    )
    first_word = researcher.mailroom._journal.sent
    researcher.mailroom._journal.sent = lambda path: None  # it looked before the other one committed
    second.send(hospital.email, STUDY, 1, "manifest", {"n": 1})
    with pytest.raises(AlreadySent):
        researcher.mailroom.send(hospital.email, STUDY, 1, "manifest", {"n": 2})
    researcher.mailroom._journal.sent = first_word
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "manifest").body == {"n": 1}
    second.close()


# Any interleaving on the store: the same end or a named error; never a wrong sum, never stuck.

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["deliver", "drop", "duplicate", "delay", "release", "replace", "garbage", "swap", "cut", "step"]
        ),
        st.integers(0, 11),
        st.integers(0, 11),
    ),
    max_size=25,
)


class HostileStore(Store):
    """A store that holds back what is put: the test decides what of it is seen, when, and under which name."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.held: list[tuple[str, bytes]] = []
        self.delayed: list[tuple[str, bytes]] = []

    def put(self, key, data):
        self.held.append((key, bytes(data)))

    def act(self, action: str, one: int, two: int) -> None:
        everything = self.held + self.delayed
        if not everything:
            return
        key, data = everything[one % len(everything)]
        other_key, other = everything[two % len(everything)]
        show = super().put
        if action in ("deliver", "duplicate", "release"):
            show(key, data)
        elif action == "drop":
            self.delete(key)
        elif action == "delay":
            self.delayed.append((key, data))
            self.held = [item for item in self.held if item[0] != key]
            self.delete(key)
        elif action == "replace":
            show(key, other)
        elif action == "swap":
            show(key, other)
            show(other_key, data)
        elif action == "garbage":
            show(key, bytes([two]) * 100)
        elif action == "cut":
            show(key, data[: max(1, len(data) // 2)])

    def deliver_all(self) -> None:
        for key, data in self.held + self.delayed:
            super().put(key, data)


class Protocol:
    """Two rounds between a researcher and two hospitals: model out, vector back, sum. Every step can be repeated."""

    def __init__(self, researcher, hospitals) -> None:
        self.researcher, self.hospitals = researcher, hospitals
        self.sums: dict[int, int] = {}
        self.errors: list[Exception] = []

    def step(self) -> None:
        """Each party does what it can now, sending again what it has said before."""
        for round in (1, 2):
            if round == 1 or 1 in self.sums:
                model = {"model": 10 if round == 1 else 20 + self.sums[1]}
                emails = [hospital.email for hospital in self.hospitals]
                self.researcher.mailroom.send_all(emails, STUDY, round, "manifest", model, b"m" * 70_000)
            for number, hospital in enumerate(self.hospitals, 1):
                letter = self.take(hospital, RESEARCHER, round, "manifest")
                if letter is not None:
                    value = number * letter.body["model"]
                    hospital.mailroom.send(
                        RESEARCHER, STUDY, round, "vector", {"value": value}, bytes([number]) * 70_000
                    )
            vectors = [self.take(self.researcher, hospital.email, round, "vector") for hospital in self.hospitals]
            if all(vectors):
                total = sum(vector.body["value"] for vector in vectors)
                assert [vector.blob[:1] for vector in vectors] == [bytes([n]) for n in (1, 2)]
                assert self.sums.setdefault(round, total) == total

    def take(self, party, sender, round, kind):
        try:
            return party.mailroom.receive(sender, STUDY, round, kind)
        except Rejected as error:
            self.errors.append(error)
            return None


RIGHT = {1: 10 + 20, 2: (20 + 30) + 2 * (20 + 30)}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_any_interleaving_ends_in_the_right_sum_or_a_named_error(tmp_path, actions):
    """After any mischief, once the store delivers, two more steps reach the one right end; errors on the way are
    `Rejected`, each with a reason in quarantine."""
    root = tmp_path / os.urandom(6).hex()
    researcher, *hospitals = make_parties(root, str(root / "store"), hospitals=("a@h.example", "b@h.example"))
    store = HostileStore(researcher.store_url)
    for party in (researcher, *hospitals):
        party.mailroom.store = store
    protocol = Protocol(researcher, hospitals)
    protocol.step()
    for action, one, two in actions:
        if action == "step":
            protocol.step()
        else:
            store.act(action, one, two)
        assert all(protocol.sums[round] == RIGHT[round] for round in protocol.sums)
    for _ in range(8):
        store.deliver_all()
        protocol.step()
    assert protocol.sums == RIGHT
    kept = sum(len(party.mailroom.quarantine.entries()) for party in (researcher, *hospitals))
    assert kept == len(protocol.errors)
    for party in (researcher, *hospitals):
        party.stop()
    shutil.rmtree(root)


def test_keys_of_letters_are_distinct():
    keys = {
        letter_key(sender, study, to, round, kind)
        for sender in ("a@b.example", "c@b.example")
        for study in ("s", "t")
        for to in ("a@b.example", "c@b.example")
        for round in (0, 1)
        for kind in ("x", "y")
    }
    assert len(keys) == 32
