"""What lies in the store costs a party bounded work, half-written files are no alarm, and nor is one's own unfinished
work after a kill. Forged and replayed contents are attacked in tests/adversarial."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from syft.sync.connections.drive.gdrive_transport import CollectionFolder
from syft.sync.messages.proposed_filechange import MessageFileName
from syft_datasets.dataset_manager import DATASET_COLLECTION_PREFIX as PREFIX

from datasites.control import mocks
from datasites.control.connection import BAD_NAMES_PER_SYNC, MAX_MESSAGE_BYTES, StoreConnection, inbox_folder
from datasites.control.guards import BYTES_PER_PEER
from datasites.control.mocks import SIGNED, MockManifest, SignedMock
from datasites.control.sync_state import SyncLog
from datasites.transport import filesystems, passed_over, quarantine, second_look, writing
from datasites.transport.mailroom import Rejected, letter_folder, letter_key
from datasites.transport.quarantine import KEEP_BYTES, Quarantine
from datasites.transport.repeats import Repeats
from datasites.transport.second_look import MOST_LOOKS, SecondLook
from datasites.transport.store import Store, StoreUnreachable
from datasites.transport.writing import INCOMING
from tests.transport.clock import Hands
from tests.transport.parties import HOSPITALS, RESEARCHER, STUDY, Party, settle, study_files

A = HOSPITALS[0]
KEY = letter_key(RESEARCHER, STUDY, A, 1, "round")


MOCK = b"age,sex\n50,1\n"


def published(hospital: Party, folder: Path) -> Path:
    """Where the mock of a hospital's dataset lies in the store."""
    (folder / "mock.csv").write_bytes(MOCK)
    hospital.control.publish_dataset("heart", folder / "mock.csv")
    (found,) = Path(hospital.store_url, "collections", hospital.email).iterdir()
    return found


# -- half-written files ------------------------------------------------------------------------------------------------


@pytest.mark.waits
@pytest.mark.parametrize("part", [0, 1, 500, -1], ids=["nothing", "a byte", "some", "all but a byte"])
def test_a_half_written_letter_is_looked_at_again(parties: list[Party], part: int) -> None:
    researcher, hospital, *_ = parties
    hospital = settle(hospital)
    researcher.mailroom.send(A, STUDY, 1, "round", {"n": 1})
    file = Path(hospital.store_url, KEY)
    whole = file.read_bytes()
    file.write_bytes(whole[:part])
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round") is None
    assert hospital.mailroom.mailbox(STUDY) == [], "it is passed over until its second look"
    assert hospital.mailroom.waiting([(RESEARCHER, STUDY, 1, "round")]) == []
    file.write_bytes(whole)
    time.sleep(0.21)
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round").body == {"n": 1}
    assert hospital.mailroom.quarantine.entries() == []


@pytest.mark.waits
def test_a_letter_before_its_blob_is_whole_is_looked_at_again(parties: list[Party]) -> None:
    researcher, hospital, *_ = parties
    hospital = settle(hospital)
    researcher.mailroom.send(A, STUDY, 1, "round", {}, b"x" * 9_000_000)
    parts = sorted(Path(hospital.store_url, "blobs", STUDY, RESEARCHER).iterdir())
    kept = {part: part.read_bytes() for part in parts[1:]}
    for part in kept:
        part.unlink()
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round") is None
    for part, data in kept.items():
        time.sleep(0.21)
        part.write_bytes(data)
        found = hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round")
    deadline = time.monotonic() + 20
    while found is None and time.monotonic() < deadline:
        time.sleep(0.05)
        found = hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round")
    assert bytes(found.blob) == b"x" * 9_000_000
    assert hospital.mailroom.quarantine.entries() == []


@pytest.mark.waits
def test_what_stays_no_letter_is_refused_at_the_second_look(parties: list[Party]) -> None:
    hospital = settle(parties[1])
    hospital.mailroom.store.put(KEY, b"no letter")
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round") is None
    time.sleep(0.21)
    with pytest.raises(Rejected):
        hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round")
    assert not hospital.mailroom.store.exists(KEY)


def test_what_changes_all_the_time_is_refused_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks, said = Hands(monkeypatch, second_look), SecondLook(1.0), []
    for number in range(16):
        said.append(looks.is_final("key", str(number)))
        clock.now += 1.0
        if said[-1]:
            break
    assert said[-1]
    assert len(said) == 16, "after 15 times the pause"
    monkeypatch.setattr(second_look, "MOST_DOUBTS", 3)
    assert [looks.is_final(str(number), "x") for number in range(5)] == [False] * 3 + [True] * 2
    assert MOST_LOOKS == 5
    clock.now += second_look.GIVEN_UP + 1.0
    assert [looks.is_final(f"later {number}", "x") for number in range(4)] == [False] * 3 + [True], "the flood is over"


@pytest.mark.waits
def test_a_half_written_submission_is_looked_at_again(friends: list[Party]) -> None:
    researcher, hospital, *_ = friends
    hospital = settle(hospital)
    hospital.control.accept_peers([RESEARCHER])
    researcher.control.submit(A, "heart-1", study_files())
    (file,) = Path(hospital.store_url, inbox_folder(A, RESEARCHER)).iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:700])
    hospital.control.sync()
    file.write_bytes(whole)
    time.sleep(0.21)
    hospital.control.sync()
    assert [job.name for job in hospital.control.jobs()] == ["heart-1"]
    assert hospital.control.quarantine.entries() == []


@pytest.mark.waits
@pytest.mark.parametrize("part", [0, 1, 200, -1], ids=["nothing", "a byte", "some", "all but a byte"])
def test_half_written_keys_are_looked_at_again(friends: list[Party], part: int) -> None:
    researcher, hospital, *_ = friends
    researcher = settle(researcher)
    bundle = Path(hospital.store_url, "identities", A, "bundle.json")
    connection, whole = researcher.control._connection, bundle.read_bytes()
    bundle.write_bytes(whole[:part])
    for _ in range(2):
        assert connection.read_peer_encryption_bundle(A) is None
    bundle.write_bytes(whole)
    time.sleep(0.21)
    assert connection.read_peer_encryption_bundle(A) == whole.decode()
    assert researcher.control.quarantine.entries() == []
    bundle.write_bytes(b"no keys")
    for _ in range(4):
        assert connection.read_peer_encryption_bundle(A) is None
        time.sleep(0.21)
    (entry,) = researcher.control.quarantine.entries()
    assert entry.what == f"identities/{A}/bundle.json"


@pytest.mark.waits
@pytest.mark.parametrize("name", ["mock.csv", "dataset.yaml", SIGNED])
@pytest.mark.parametrize("part", [0, 3, -1], ids=["nothing", "some", "all but a byte"])
def test_half_written_mock_data_are_looked_at_again(friends: list[Party], tmp_path: Path, name: str, part: int) -> None:
    researcher, hospital, *_ = friends
    researcher = settle(researcher)
    file = published(hospital, tmp_path) / name
    whole = file.read_bytes()
    file.write_bytes(whole[:part])
    for _ in range(2):
        researcher.control.sync()
    assert researcher.control.datasets(A) == []
    file.write_bytes(whole)
    time.sleep(0.21)
    researcher.control.sync()
    assert researcher.control.mock(A, "heart") == MOCK
    assert researcher.control.quarantine.entries() == []


@pytest.mark.waits
def test_mock_data_that_stay_cut_off_are_refused_once(friends: list[Party], tmp_path: Path) -> None:
    researcher, hospital, *_ = friends
    researcher = settle(researcher)
    folder = published(hospital, tmp_path)
    (folder / "mock.csv").write_bytes(MOCK[:3])
    for _ in range(4):
        researcher.control.sync()
        time.sleep(0.21)
    (entry,) = researcher.control.quarantine.entries()
    assert entry.what == folder.relative_to(hospital.store_url).as_posix()


@pytest.mark.waits
def test_mock_data_that_were_refused_are_read_again_when_put_right(
    friends: list[Party], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[tuple[str, int]]
) -> None:
    researcher, hospital, *_ = friends
    researcher, clock = settle(researcher), Hands(monkeypatch, passed_over)
    folder = published(hospital, tmp_path)
    (folder / "mock.csv").write_bytes(MOCK[:3])
    for _ in range(4):
        researcher.control.sync()
        time.sleep(0.21)
    fetched.clear()
    (folder / "mock.csv").write_bytes(MOCK)
    researcher.control.sync()
    assert not [key for key, _ in fetched if key.startswith("collections/")]
    clock.now += mocks.LOOKS_EVERY
    researcher.control.sync()
    assert researcher.control.mock(A, "heart") == MOCK
    assert len(researcher.control.quarantine.entries()) == 1


def test_nothing_is_read_of_a_folder_whose_list_of_files_is_not_its_owners(
    friends: list[Party], tmp_path: Path, fetched: list[tuple[str, int]]
) -> None:
    """Unsigned lists, and a signed one that lies under another name: each is read once, and no file that it names."""
    researcher, hospital, *_ = friends
    true = published(hospital, tmp_path)
    manifest = MockManifest(owner=A, name="heart", version=9, mock="m0", files={f"m{n}": "0" * 64 for n in range(50)})
    unsigned = SignedMock(manifest=manifest, signature="0" * 128).canonical()
    for number, head in enumerate([unsigned, unsigned, (true / SIGNED).read_bytes()]):
        folder = true.parent / CollectionFolder(prefix=PREFIX, tag="other", content_hash=f"{number}").folder_name
        folder.mkdir()
        (folder / SIGNED).write_bytes(head)
        for file in range(50):
            (folder / f"m{file}").write_bytes(b"x")
    for looks in (3, 0):
        fetched.clear()
        researcher.control.sync()
        read = [key.rpartition("/")[2] for key, _ in fetched if "_other_" in key]
        assert read == looks * [SIGNED]
    assert len(researcher.control.quarantine.entries()) == 3
    assert researcher.control.mock(A, "heart") == MOCK


# -- floods ------------------------------------------------------------------------------------------------------------


def test_a_letter_that_is_expected_is_found_in_a_crowded_mailbox(
    parties: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Store.look` reads so many names and no more; what is wanted is then looked for by its name."""
    researcher, hospital, *_ = parties
    monkeypatch.setattr("datasites.transport.store.MOST_NAMES", 50)
    folder = Path(hospital.store_url, letter_folder(STUDY, A))
    folder.mkdir(parents=True)
    for number in range(300):
        (folder / f"{number:08d}.junk.{RESEARCHER}").touch()
        (folder / f".hidden-{number}").touch()
    researcher.mailroom.send(A, STUDY, 7, "round", {"n": 7})
    listing = hospital.mailroom.store.look(letter_folder(STUDY, A))
    assert len(listing.names) <= 50
    assert not listing.is_whole
    expected = (RESEARCHER, STUDY, 7, "round")
    assert hospital.mailroom.wait([expected, (RESEARCHER, STUDY, 8, "round")], 0.05) == [expected]
    mailbox = hospital.mailroom.mailbox(STUDY, [(7, "round", RESEARCHER), (8, "round", RESEARCHER)])
    assert (7, "round", RESEARCHER) in mailbox
    assert (8, "round", RESEARCHER) not in mailbox


def test_a_quarantine_counts_what_it_left_out_when_its_owner_closes(
    parties: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is refused after the hour; and once."""
    monkeypatch.setattr(quarantine, "KEEP_PER_HOUR", 20)
    party = parties[0]
    assert party.mailroom is not None
    assert party.control is not None
    kept = [party.mailroom.quarantine, party.control.quarantine]
    for one in kept:
        for number in range(25):
            one.keep(f"key-{number}", "no letter")
    party.stop()
    for one in kept:
        one.close()
        *entries, last = one.entries()
        assert len(entries) == 20
        assert (last.what, last.reason) == ("flood", "5 more were refused since the entry before this one")


def test_a_quarantine_is_bounded_by_the_hour_and_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quarantine, "KEEP_PER_HOUR", 20)
    monkeypatch.setattr(quarantine, "KEEP_ENTRIES", 50)
    clock, kept = Hands(monkeypatch, quarantine), Quarantine(tmp_path)
    with caplog.at_level(logging.WARNING):
        for number in range(1000):
            kept.keep(f"key-{number}", "no letter", b"x" * 200_000)
    assert len(list(tmp_path.iterdir())) == 2 * 20
    assert len(caplog.records) == 20 + 1
    clock.now += quarantine.HOUR
    kept.keep("later", "no letter")
    *_, flood, last = kept.entries()
    assert (flood.what, last.what) == ("flood", "later")
    assert flood.reason.startswith("980 more")
    (tmp_path / "00000000000000000000-cut.bin").write_bytes(b"left by a crash")
    for _ in range(4):
        clock.now += quarantine.HOUR
        for number in range(30):
            kept.keep(f"key-{number}", "no letter", b"x" * 200_000)
    files = list(tmp_path.iterdir())
    assert len(files) <= 2 * 50
    assert sum(file.stat().st_size for file in files) <= 50 * (KEEP_BYTES + 4096)
    assert not (tmp_path / "00000000000000000000-cut.bin").exists()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(key, bytes) of all that is read from the store."""
    found: list[tuple[str, int]] = []
    get = Store.get

    def counted(store: Store, key: str, limit: int | None = None) -> bytes | None:
        data = get(store, key, limit)
        found.append((key, len(data or b"")))
        return data

    monkeypatch.setattr(Store, "get", counted)
    return found


def test_a_sync_reads_bounded_bytes_and_names_of_one_channel(
    friends: list[Party], fetched: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    """`BYTES_PER_PEER`, `BAD_NAMES_PER_SYNC`; each refused message is read once."""
    _, hospital, *_ = friends
    folder = Path(hospital.store_url, inbox_folder(A, RESEARCHER))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(300):
        (folder / f"junk-{number}").write_bytes(b"x")
    for _ in range(5):
        (folder / MessageFileName().as_string()).write_bytes(b"x" * MAX_MESSAGE_BYTES)
    fetched.clear()
    hospital.control.sync()
    messages = [(key, size) for key, size in fetched if "/inbox/" in key]
    assert sum(size for _, size in messages) <= BYTES_PER_PEER + MAX_MESSAGE_BYTES
    assert len(messages) == len(dict(messages)) == 2
    assert len(hospital.control.quarantine.entries()) <= BAD_NAMES_PER_SYNC + len(messages)
    hospital.control.sync()
    assert len([key for key, _ in fetched if "/inbox/" in key]) == 4, "the next sync goes on"


def test_a_deep_folder_under_a_name_is_put_aside_at_once(tmp_path: Path) -> None:
    """`_set_aside`: to empty it would take for ever, or the interpreter's stack."""
    store = Store(tmp_path)
    for act in (lambda: store.put("a/b", b"true"), lambda: store.delete("a/b")):
        inner = tmp_path / "a" / "b"
        inner.unlink(missing_ok=True)
        here = os.getcwd()
        inner.mkdir(parents=True)
        os.chdir(inner)
        try:
            for _ in range(1200):
                os.mkdir("d")
                os.chdir("d")
        finally:
            os.chdir(here)
        act()
        assert store.list("a") == (["b"] if store.exists("a/b") else [])
    assert not store.exists("a/b")
    assert len([name for name in os.listdir(tmp_path / "a") if name.startswith(filesystems.ASIDE)]) == 2
    os.system(f"rm -rf {tmp_path / 'a'}")  # rmtree of Python's, and pytest's, goes by recursion


@pytest.mark.waits
def test_a_name_that_is_no_text_ends_nobodys_wait(tmp_path: Path) -> None:
    """The library that waits for file events raises for it."""
    store = Store(tmp_path)
    store.put("a/x", b"1")
    odd, said = os.fsencode(tmp_path) + b"/a/\xff\xfe", []

    def lay() -> None:
        Path(os.fsdecode(odd)).touch()
        time.sleep(0.3)
        store.put("a/y", b"2")

    thread = threading.Timer(0.3, lay)
    thread.start()
    for _ in store.changes(["a"], 20.0):
        said = store.list("a")
        if "y" in said:
            break
    thread.join()
    assert said == ["x", "y"]


# -- letters put again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["gone", "changed", "cut", "a folder", "a link"])
def test_a_letter_that_the_store_has_lost_is_known_and_put_again_as_it_was(parties: list[Party], lost: str) -> None:
    researcher, hospital, *_ = parties
    mailroom = researcher.mailroom
    assert not mailroom.lies(A, STUDY, 1, "round"), "nothing was sent yet"
    mailroom.send(A, STUDY, 1, "round", {"n": 1})
    file = Path(hospital.store_url, KEY)
    whole = file.read_bytes()
    assert mailroom.lies(A, STUDY, 1, "round")
    if lost != "changed":
        file.unlink()
    {
        "gone": lambda: None,
        "changed": lambda: file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:]),
        "cut": lambda: file.write_bytes(whole[:-1]),
        "a folder": lambda: (file / "x").mkdir(parents=True),
        "a link": lambda: file.symlink_to("/etc/passwd"),
    }[lost]()
    assert not mailroom.lies(A, STUDY, 1, "round")
    mailroom.send(A, STUDY, 1, "round", {"n": 1})
    assert file.read_bytes() == whole
    mailroom.collect(STUDY, before=2)
    file.unlink()
    assert mailroom.lies(A, STUDY, 1, "round"), "its round is over: nobody waits for it"


def test_letters_are_looked_for_after_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Hands(monkeypatch, __import__("datasites.transport.repeats", fromlist=["repeats"]))
    repeats, looked = Repeats(2.0, 10.0), []
    letter, other = (A, 1, "round"), (A, 2, "round")
    repeats.begin(letter)
    repeats.begin(other)
    repeats.end(lambda letter: letter[1] == 2)
    began = clock.now
    while clock.now < began + 40:
        clock.now = repeats.next_due
        repeats.begin(letter)
        looked += [clock.now - began for found in repeats.due() if found == letter]
    assert looked == [2.0, 6.0, 14.0, 24.0, 34.0, 44.0]
    repeats.end(lambda _: True)
    assert repeats.next_due is None
    assert repeats.due() == []


def test_keys_that_the_store_has_lost_are_put_again(friends: list[Party]) -> None:
    researcher, hospital, *_ = friends
    bundle = Path(researcher.store_url, f"identities/{A}/bundle.json")
    true = bundle.read_bytes()
    for lost in (bundle.unlink, lambda: bundle.write_bytes(b"{}")):
        lost()
        hospital.control.sync()
        assert bundle.read_bytes() == true


@pytest.mark.parametrize("lost", ["a file", "its list", "all of it", "changed", "a folder", "an older one beside it"])
def test_mock_data_that_the_store_has_lost_are_put_again_as_they_were(
    friends: list[Party], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    researcher, hospital, *_ = friends
    clock = Hands(monkeypatch, mocks)
    hospital.restart()
    folder = published(hospital, tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    {
        "a file": (folder / "mock.csv").unlink,
        "its list": (folder / SIGNED).unlink,
        "all of it": lambda: shutil.rmtree(folder.parent),
        "changed": lambda: (folder / "mock.csv").write_bytes(MOCK[::-1]),
        "a folder": lambda: ((folder / "mock.csv").unlink(), (folder / "mock.csv" / "x").mkdir(parents=True)),
        "an older one beside it": lambda: shutil.copytree(folder, f"{folder}"[:-1] + "z"),
    }[lost]()
    (tmp_path / "mock.csv").write_text("what the operator works at\n")
    hospital.control.sync()
    clock.now += mocks.LOOKS_EVERY
    hospital.control.sync()
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    assert os.listdir(folder.parent) == [folder.name]
    researcher.control.sync()
    assert researcher.control.mock(A, "heart") == MOCK


def test_a_mock_whose_place_is_obstructed_keeps_no_other_from_being_put_again(
    friends: list[Party], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital, clock = friends[1], Hands(monkeypatch, mocks)
    hospital.restart()
    (tmp_path / "mock.csv").write_bytes(MOCK)
    names, folders = ("a", "heart", "z"), dict[str, Path]()
    place = Path(hospital.store_url, "collections", A)
    for name in names:
        before = set(place.iterdir()) if place.exists() else set()
        hospital.control.publish_dataset(name, tmp_path / "mock.csv")
        (folders[name],) = set(place.iterdir()) - before
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in names:
        shutil.rmtree(folders[name])
    folders["a"].symlink_to(elsewhere)
    clock.now += mocks.LOOKS_EVERY
    hospital.control.sync()
    for name in ("heart", "z"):
        assert (folders[name] / "mock.csv").read_bytes() == MOCK
    refused = [entry for entry in hospital.control.quarantine.entries() if entry.what == f"collections/{A}"]
    assert "mock a: " in refused[-1].reason
    assert list(elsewhere.iterdir()) == []
    folders["a"].unlink()
    clock.now += mocks.LOOKS_EVERY
    hospital.control.sync()
    assert (folders["a"] / "mock.csv").read_bytes() == MOCK


def test_mock_data_are_looked_for_seldom(
    friends: list[Party], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[tuple[str, int]]
) -> None:
    hospital, clock = friends[1], Hands(monkeypatch, mocks)
    hospital.restart()
    published(hospital, tmp_path)
    for _ in range(3):
        fetched.clear()
        for _ in range(5):
            clock.now += mocks.LOOKS_EVERY / 5
            hospital.control.sync()
        read = [key.rpartition("/")[2] for key, _ in fetched if key.startswith("collections/")]
        assert sorted(read) == ["dataset.yaml", "mock.csv", SIGNED]


def test_mock_data_whose_files_here_were_changed_are_not_put_again(
    friends: list[Party], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hospital, clock = friends[1], Hands(monkeypatch, mocks)
    hospital.restart()
    folder = published(hospital, tmp_path)
    shutil.rmtree(folder)
    (here,) = (hospital.home / "SyftBox").rglob("mock.csv")
    here.write_bytes(b"another\n")
    clock.now += mocks.LOOKS_EVERY
    hospital.control.sync()
    assert not folder.exists()
    assert "heart is not put again" in caplog.text


def test_a_place_of_our_keys_that_leads_elsewhere_stops_no_sync(
    friends: list[Party], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    researcher, hospital, *_ = friends
    monkeypatch.setattr(filesystems, "IN_FLIGHT_SECONDS", -1.0)
    place = Path(researcher.store_url, "identities", A)
    place.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    hospital.control.sync()
    hospital.control.sync()
    researcher.control._connection.watcher_send_raw_bytes_to_inbox(A, "no-message", b"x")
    hospital.control.sync()
    assert [entry.what for entry in hospital.control.quarantine.entries()] == [
        f"identities/{A}",
        f"{inbox_folder(A, RESEARCHER)}/no-message",
    ]
    assert list((tmp_path / "elsewhere").iterdir()) == []


# -- one's own unfinished work -----------------------------------------------------------------------------------------


def killed_at(start: Callable[[], None], place: object, name: str, after: bool) -> None:
    """Do `start` in a process of its own, which is killed (-9) when it is about to call `name`, or has called it."""
    child = os.fork()
    if child == 0:
        real = getattr(place, name)

        def deadly(*args: object, **options: object) -> object:
            if after:
                real(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        setattr(place, name, deadly)
        try:
            start()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{name} was not reached"


POINTS = [
    (writing, "move_durably"),
    (SyncLog, "mark_handled"),
    (StoreConnection, "remove"),
    (SyncLog, "mark_left"),
    (SyncLog, "mark_delivered"),
]


@pytest.mark.waits
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("place", "name"), POINTS, ids=[name for _, name in POINTS])
def test_a_hospital_killed_at_any_point_raises_no_alarm(
    friends: list[Party], place: object, name: str, after: bool
) -> None:
    researcher, hospital, *_ = friends
    researcher.control.submit(A, "heart-1", study_files())
    hospital.stop()

    def act() -> None:
        hospital.start()
        hospital.control.sync()
        hospital.control.jobs()
        hospital.control.record_approval("heart-1", "approved sha256:1")
        hospital.control.sync()

    killed_at(act, place, name, after)
    act()
    hospital.control.sync()
    assert [(job.name, job.status) for job in hospital.control.jobs()] == [("heart-1", "approved")]
    assert list((hospital.home / "SyftBox" / INCOMING).glob("*")) == []
    assert hospital.control.store.list(inbox_folder(A, RESEARCHER)) == []
    researcher.control.sync()
    assert researcher.control.job_state(A, "heart-1").state == "approved"
    assert hospital.control.quarantine.entries() == researcher.control.quarantine.entries() == []


@pytest.mark.waits
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("place", "name"),
    [(SyncLog, "mark_applied"), (SyncLog, "mark_handled"), (StoreConnection, "remove"), (SyncLog, "mark_left")],
)
def test_a_researcher_killed_at_any_point_raises_no_alarm(
    friends: list[Party], place: object, name: str, after: bool
) -> None:
    researcher, hospital, *_ = friends
    researcher.control.submit(A, "heart-1", study_files())
    hospital.control.sync()
    hospital.control.jobs()
    hospital.control.sync()
    researcher.stop()

    def act() -> None:
        researcher.start()
        researcher.control.sync()

    killed_at(act, place, name, after)
    act()
    assert researcher.control.job_state(A, "heart-1").state == "pending"
    assert researcher.control.quarantine.entries() == []


def test_a_message_that_an_outage_kept_from_being_removed_is_no_replay(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as having left only when it has; also after a restart."""
    researcher, hospital, *_ = friends
    researcher.control.submit(A, "heart-1", study_files())

    def away(*_: object) -> None:
        raise StoreUnreachable("the share is not mounted")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "delete", away)
        hospital.control.sync()
    hospital.restart()
    hospital.control.sync()
    assert [job.name for job in hospital.control.jobs()] == ["heart-1"]
    assert hospital.control.store.list(inbox_folder(A, RESEARCHER)) == []
    assert hospital.control.quarantine.entries() == []
    name = MessageFileName().as_string()
    hospital.control._connection.log.mark_handled(RESEARCHER, name)
    hospital.control._connection.log.mark_left(RESEARCHER, name)
    hospital.control.store.put(f"{inbox_folder(A, RESEARCHER)}/{name}", b"what was handled, and left")
    hospital.control.sync()
    assert "a replay" in hospital.control.quarantine.entries()[-1].reason
