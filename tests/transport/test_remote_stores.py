"""One contract for every kind of store, against real servers on loopback.

Without it, a store that replaces non-atomically, lists its caches, or hides an error would break rounds silently.
"""

from __future__ import annotations

import os
import threading
import time

import pytest
from loopback_servers import Absent, s3, sftp

from datasites.transport.mailroom import Rejected
from datasites.transport.store import WHOLE_STORE, Store, StoreDenied, StoreError, StoreMissing, TooLarge
from datasites.transport.sweep import Sweep
from tests.transport.parties import STUDY, befriend, make_parties, study_files

pytestmark = pytest.mark.waits


@pytest.fixture
def store(served) -> Store:
    url, options = served
    return Store(url, **options)


def test_put_get_list_delete(store):
    folder = f"contract/{os.urandom(4).hex()}/a@b.example"
    assert store.get(f"{folder}/none") is None
    assert store.list(folder) == []
    assert store.size(f"{folder}/none") is None
    store.put(f"{folder}/one", b"1" * 1000)
    store.put(f"{folder}/one", b"2" * 10)
    store.put(f"{folder}/sub/two", b"x")
    assert store.get(f"{folder}/one") == b"2" * 10
    assert store.get(f"{folder}/one", limit=10) == b"2" * 10
    with pytest.raises(TooLarge):
        store.get(f"{folder}/one", limit=9)
    assert store.size(f"{folder}/one") == 10
    assert store.list(folder) == ["one", "sub"]
    store.delete(f"{folder}/one")
    store.delete(f"{folder}/one")
    assert not store.exists(f"{folder}/one")
    assert store.delete_folder(f"{folder}/sub") == 1
    assert store.list(folder) == []


def test_a_crowded_folder_is_seen_part_by_part_and_cleared(store, monkeypatch):
    monkeypatch.setattr("datasites.transport.sweep.MOST_NAMES", 10)
    folder, looks, seen = f"crowd/{os.urandom(4).hex()}", Sweep(store), set()
    for number in range(30):
        store.put(f"{folder}/junk-{number}", b"")
        store.put(f"{folder}/wanted-{number}", b"")
    store.put(f"{folder}/junk-folder/x", b"")
    for _ in range(2 * (61 // 10 + 2)):
        seen.update(looks.look(folder, lambda name: name.startswith("wanted"), 10).wanted)
    assert seen == {f"wanted-{number}" for number in range(30)}
    assert set(store.list(folder)) - seen <= {"junk-folder"}
    assert store.exists(f"{folder}/junk-folder/x")


def test_another_store_object_sees_changes_at_once(served):
    url, options = served
    one, two = Store(url, **options), Store(url, **options)
    folder = f"fresh/{os.urandom(4).hex()}"
    assert two.list(folder) == []
    one.put(f"{folder}/x", b"1")
    assert two.list(folder) == ["x"]
    assert two.get(f"{folder}/x") == b"1"
    one.delete(f"{folder}/x")
    assert two.list(folder) == []
    assert two.get(f"{folder}/x") is None


def test_a_reader_never_sees_a_part(store):
    """Two contents of 2 MB alternate under one key while it is read: every read is one of them, whole.

    (wsgidav replaces by delete and move, so that there a name may be absent for a moment; never a part.)
    """
    key, contents = f"atomic/{os.urandom(4).hex()}/x", (b"a" * 2_000_000, b"b" * 2_000_000)
    store.put(key, contents[0])
    done = threading.Event()

    def write():
        try:
            for turn in range(6):
                store.put(key, contents[turn % 2])
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set():
        data = store.get(key, limit=4_000_000)
        assert data in contents or (data is None and store.url.startswith("webdav"))
        reads += 1
    writer.join()
    assert reads > 0
    assert store.get(key) == contents[1]


def test_a_file_in_place_of_a_folder_is_no_outage(served):
    url, options = served
    store, folder = Store(url, **options), f"odd/{os.urandom(4).hex()}"

    def fault(key: str) -> StoreError | None:
        try:
            store.put(key, b"1")
        except StoreError as error:
            return error
        return None

    store.put(folder, b"a file")
    assert not any(isinstance(fault(f"{folder}/{name}"), WHOLE_STORE) for name in ("x", "deep/x"))


def test_wait_sees_a_new_name(served):
    url, options = served
    store, other = Store(url, **options), Store(url, **options)
    folder = f"wait/{os.urandom(4).hex()}"
    threading.Timer(0.3, lambda: other.put(f"{folder}/x", b"1")).start()
    assert store.wait([folder], timeout=10)
    start = time.monotonic()
    assert not store.wait([folder], timeout=0.3)
    assert time.monotonic() - start >= 0.3


def test_study_and_letters_travel(served, tmp_path):
    """Peers, a mock dataset, a submission, its approval, and a letter with a large blob, over each kind of store."""
    url, options = served
    parties = make_parties(tmp_path, f"{url}/{os.urandom(4).hex()}", options=options)
    researcher, *hospitals = parties
    befriend(researcher, hospitals)
    mock = tmp_path / "mock.csv"
    mock.write_text("age\n50\n")
    for hospital in hospitals:
        hospital.control.publish_dataset("heart", mock, "a mock")
    researcher.control.sync()
    assert researcher.control.mock(hospitals[2].email, "heart") == b"age\n50\n"
    researcher.control.submit(hospitals[0].email, "heart-1", study_files())
    hospitals[0].control.sync()
    hospitals[0].control.record_approval("heart-1", "sha256:1234")
    hospitals[0].control.sync()
    researcher.control.sync()
    decision = researcher.control.job_state(hospitals[0].email, "heart-1")
    assert (decision.state, decision.reason) == ("approved", "sha256:1234")
    blob = os.urandom(9_000_000)
    emails = [hospital.email for hospital in hospitals]
    researcher.mailroom.send_all(emails, STUDY, 1, "manifest", {"n": 1}, blob)
    expected = (researcher.email, STUDY, 1, "manifest")
    for hospital in hospitals:
        assert hospital.mailroom.wait([expected], 20) == [expected]
        assert hospital.mailroom.receive(*expected).blob == blob
    folder = f"blobs/{STUDY}/{researcher.email}"
    part = f"{folder}/{researcher.mailroom.store.list(folder)[1]}"
    researcher.mailroom.store.put(part, os.urandom(researcher.mailroom.store.size(part)))
    with pytest.raises(Rejected, match="authenticate"):
        hospitals[0].mailroom.receive(*expected)
    researcher.mailroom.send_all(emails, STUDY, 1, "manifest", {"n": 1}, blob)
    assert hospitals[0].mailroom.receive(*expected).blob == blob
    assert researcher.mailroom.collect(STUDY, before=2) >= 3
    assert researcher.mailroom.store.list(folder) == []
    for party in parties:
        party.stop()


def test_no_such_bucket_and_bad_credentials_are_named(tmp_path):
    """A permanent error is told at once and says what to mend; it isn't retried as if it were the network."""
    try:
        with s3(tmp_path) as (url, options):
            start = time.monotonic()
            with pytest.raises(StoreMissing, match="create the bucket"):
                Store("s3://no-such-bucket-here/x", **options)
            assert time.monotonic() - start < 4
    except Absent as absent:
        pytest.skip(str(absent))


def test_wrong_ssh_key_and_unknown_host_are_named(tmp_path):
    try:
        with sftp(tmp_path) as (url, options):
            (tmp_path / "empty").write_text("")
            with pytest.raises(StoreDenied):
                Store(url, **{**options, "known_hosts": str(tmp_path / "empty")})
            with pytest.raises(StoreDenied):
                Store(url, **{**options, "client_keys": [str(tmp_path / "sshd" / "host")]})
    except Absent as absent:
        pytest.skip(str(absent))


def test_a_store_that_is_away_is_tried_again_and_then_named(tmp_path, monkeypatch):
    monkeypatch.setattr("datasites.transport.store.RETRY_DELAYS", (0.01, 0.01))
    with pytest.raises(StoreError, match="check the network"):
        Store("ssh://127.0.0.1/x", port=1, username="x", known_hosts=None)
