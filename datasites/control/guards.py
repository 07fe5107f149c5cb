"""Syft's engine, which here believes only what can be checked: subclasses of its parts, one guard each.

Stock syft 0.10 lets a message name its own sender, owner and path, applies what is replayed or rolled back, loses
local changes at a restart, reads all private files at every sync, and stops for everybody at one bad message. Here:

- a datasite takes one kind of message, a complete new submission, from the peer whose channel it came by and whose
  key signed it, under the name that is signed inside, once (`OwnerSyncer`);
- a datasite sends one kind of file: the state and the outputs of a peer's own submissions (`OwnerSyncer`);
- a researcher takes such files only from the datasite that owns them, of what it has itself submitted there, never an
  older one over a newer (`WatcherSyncer`), and mock data only with its owner's signature (`mocks.fetch_mocks`);
- whatever else comes is quarantined with the reason, and the next message is looked at; what can't be read or removed
  is reported once and passed over. What may be half written is looked at again first. What our own disk has no room
  for stays, and is tried again; the next message and the next peer have their turn.

Claim (crashes): a message that was taken is taken once, and a process that is killed anywhere between taking and
removing it raises no alarm about it when it starts again: such a message is `leaving`, and is removed quietly. Any
other message that was handled is a replay. Assumes that the log's file survives.

Claim (floods): at one sync a peer's channel costs at most `MOST_NAMES` names, `MESSAGES_PER_PEER` messages (after
`SECONDS_PER_PEER` only `FEW_MESSAGES`) and `BYTES_PER_PEER` bytes (and one message more) before a signature is checked,
whoever wrote them; then the next peer has its turn. A message among `n` names that nobody adds to is taken in within
the looks that `sweep` states; for each `FEW_MESSAGES` of them that are spelt as messages are, it may be three syncs
more, as these are looked at twice and may come before it. Of each peer, however well it signs, a datasite keeps
`MOST_KEPT` submissions of `MOST_KEPT_BYTES`, and a researcher `MOST_RESULTS` files of `MOST_RESULTS_BYTES` (and mock
data as `mocks` states); either remembers `MOST_HANDLED` names of messages, and takes no further message then.

Nothing here decides whether a study may run; that is the business of `hospital`.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasites.control.without_ipython  # noqa: F401

from pydantic import ConfigDict, PrivateAttr, ValidationError
from syft.sync.connections.connection_router import ConnectionRouter
from syft.sync.events.file_change_event import (
    FileChangeEvent,
    FileChangeEventsMessage,
    FileChangeEventsMessageFileName,
)
from syft.sync.messages.proposed_filechange import ProposedFileChange, ProposedFileChangesMessage
from syft.sync.syftbox_manager import SyftboxManager
from syft.sync.sync.datasite_owner_syncer import DatasiteOwnerSyncer
from syft.sync.sync.datasite_watcher_syncer import DatasiteWatcherSyncer
from syft.sync.version.peer_manager import PeerManager

from datasites.control.connection import MAX_MESSAGE_BYTES, StoreConnection
from datasites.control.mocks import fetch_mocks
from datasites.control.submissions import (
    MOST_KEPT,
    MOST_KEPT_BYTES,
    MOST_RESULTS,
    MOST_RESULTS_BYTES,
    Refused,
    Submission,
    bounded_message,
    content_bytes,
    is_outgoing_path,
    outgoing_folder,
    outgoing_job,
    read_submission_message,
    submission_folder,
)
from datasites.control.sync_state import LARGEST_NUMBER, MOST_HANDLED, SyncLog
from datasites.study.files import write_whole
from datasites.study.identity import IdentityError
from datasites.transport.store import WHOLE_STORE, StoreError
from datasites.transport.writing import put_folder

logger = logging.getLogger(__name__)

#: What is taken from one peer at one sync: so many messages, and more of them while there is time, up to
#: `MESSAGES_PER_PEER`. An honest one sends a few of some 100 KB.
FEW_MESSAGES, SECONDS_PER_PEER, BYTES_PER_PEER = 100, 1.0, 2 * MAX_MESSAGE_BYTES


class Unopened(Refused):
    """What lies there is not a message, or is half of one."""


class Router(ConnectionRouter):
    """Opens a message only when its sender's pinned key signed it; everything sent is encrypted."""

    @property
    def connection(self) -> StoreConnection:
        """Return the one connection."""
        connection = self.connections[0]
        assert isinstance(connection, StoreConnection)
        return connection

    def open(self, sender: str, sealed: bytes) -> bytes:
        """Return the verified, decrypted JSON of one message; raise `Refused`."""
        try:
            return bounded_message(self.peer_store.decrypt_and_verify_if_needed(sender, sealed))
        except Refused:
            raise
        except Exception as error:  # the native library, zlib and tarfile raise various types on hostile input
            raise Unopened(f"not a message that {sender} signed for us: {error}") from error


class Peers(PeerManager):
    """Syft's peers, restricted to pinned parties; versions that peers claim are not looked at."""

    def load_peer_versions_parallel(self, peer_emails: list[str], force: bool = False) -> dict[str, Any]:
        """None loaded: see `StoreConnection.read_peer_version_file`."""
        return {}


def _take_each(
    router: Router, log: SyncLog, channel: str, messages: Iterable[tuple[str, str]], act: Callable[[bytes, str], None]
) -> None:
    """Open each message of one peer, given as (name, key), and `act` on it, once; then remove it.

    That it was handled is noted before it is removed, and that it has left afterwards: killed in between, the next
    process knows it as its own unfinished work.
    """
    connection, read, until = router.connection, 0, time.monotonic() + SECONDS_PER_PEER
    for number, (name, key) in enumerate(messages):
        if read >= BYTES_PER_PEER or (number >= FEW_MESSAGES and time.monotonic() > until):
            return
        sealed = b""
        try:
            try:
                if not log.is_being_removed(channel, name):
                    found = connection.store.get(key, limit=MAX_MESSAGE_BYTES)
                    if found is None:
                        continue  # gone since it was listed
                    sealed, read = found, read + len(found)
                    if log.handled(channel, name):
                        raise Refused("a replay: this message was handled before")
                    if log.is_full(channel):
                        raise Refused(
                            f"{channel} has sent {MOST_HANDLED} messages; to send more, it needs another address"
                        )
                    act(router.open(channel, sealed), name)
                    log.mark_handled(channel, name)
            except WHOLE_STORE:
                raise
            except Unopened as error:
                connection.refuse_when_settled(key, str(error), sealed)
                continue
            except (Refused, StoreError) as error:
                connection.refuse(key, str(error), sealed)
                if isinstance(error, Refused) and not log.is_full(channel):
                    log.mark_handled(channel, name)
            if connection.remove(key):
                log.mark_left(channel, name)
        except (OSError, IdentityError) as error:
            # Our own trouble (disk, keys), not the sender's: what was not refused stays and is tried again.
            logger.error("message %s: %s", key, error)


class OwnerSyncer(DatasiteOwnerSyncer):
    """A datasite's side: takes submissions, sends states and outputs of submissions."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    connection_router: Router
    log: SyncLog
    #: By submitter.
    _kept: dict[str, tuple[int, int]] = PrivateAttr(default_factory=dict)

    def sync(self, peer_emails: list[str], recompute_hashes: bool = True) -> None:
        """Take what peers have sent, then send what has changed. One peer's trouble doesn't hold up another."""
        self.initial_sync_done = True
        acts = (self.take_submissions, self.send_changes) if recompute_hashes else (self.take_submissions,)
        _with_each(self.connection_router.connection, peer_emails, *acts)

    def pull_initial_state(self) -> None:
        """Nothing is restored from the store: approvals and submissions on disk are the truth."""
        self.initial_sync_done = True

    def process_local_changes(self, recipients: list[str]) -> None:
        """Send what has changed to each recipient."""
        for recipient in recipients:
            self.send_changes(recipient)

    def take_submissions(self, sender: str) -> None:
        """Handle the messages of one sender, some at a time."""
        router = self.connection_router
        if not router.peer_store.has_peer_bundle(sender):
            return  # without its pinned keys a good message can't be told from a bad one: all wait

        def place(plain: bytes, name: str) -> None:
            self._place(read_submission_message(plain, name, sender, self.email))

        messages = [(key.rpartition("/")[2], key) for key in router.connection.inbox_keys(sender)]
        _take_each(router, self.log, sender, messages, place)

    def _place(self, submission: Submission) -> None:
        """Put a whole submission in place by one rename; another under its name is refused.

        The same again changes nothing, and has its state sent again: its submitter may have lost what was sent.
        """
        folder = self.syftbox_folder / self.email / submission_folder(submission.submitter, submission.job_name)
        if folder.exists():
            if submission.files != _files_in(folder):
                raise Refused(f"submission {submission.job_name} is there already with other content; use another name")
            self.log.forget_delivered(
                submission.submitter, f"{outgoing_folder(submission.submitter)}/{submission.job_name}/"
            )
            return
        self._require_room(folder.parent, submission)
        # It is on the disk before its message leaves the store.
        put_folder(self.syftbox_folder, folder, submission.files)
        number, size = self._kept[submission.submitter]
        self._kept[submission.submitter] = number + 1, size + _size(submission)

    def _require_room(self, folder: Path, submission: Submission) -> None:
        """Refuse what is more than is kept of one submitter, who are counted once in a process."""
        number, size = self._kept.get(submission.submitter) or _kept(folder)
        self._kept[submission.submitter] = number, size
        if number >= MOST_KEPT or size + _size(submission) > MOST_KEPT_BYTES:
            raise Refused(
                f"{submission.submitter}: {number} submissions of {size} bytes are kept, and {MOST_KEPT} of "
                f"{MOST_KEPT_BYTES} bytes are the most; the hospital may remove old ones from {folder}, and start again"
            )

    def send_changes(self, recipient: str) -> None:
        """Put into `recipient`'s outbox the states and outputs of its submissions that it has not been sent yet.

        Reads only that folder, so an idle sync touches no other file, private ones least of all. What was sent is
        noted after it was put: a crash in between sends it again.
        """
        datasite = self.syftbox_folder / self.email
        root = datasite / outgoing_folder(recipient)
        if not root.is_dir():
            return
        delivered = self.log.delivered(recipient)
        events, hashes = [], {}
        for file in sorted(root.rglob("*")):
            path = file.relative_to(datasite).as_posix()
            if not is_outgoing_path(path, recipient) or file.is_symlink() or not file.is_file():
                continue
            content = file.read_bytes()
            hash = hashlib.sha256(content).hexdigest()
            if delivered.get(path) == hash or not self.check_read_permissions(recipient, path):
                continue
            hashes[path] = hash
            events.append(self._event(path, content, delivered.get(path), hash))
        if not events:
            return
        number = self.log.next_number(recipient)
        name = FileChangeEventsMessageFileName(timestamp=float(number))
        message = FileChangeEventsMessage(events=events, message_filepath=name)
        self.connection_router.owner_write_event_messages_to_outbox(recipient, message)
        self.log.mark_delivered(recipient, hashes)

    def _event(self, path: str, content: bytes, old: str | None, new: str) -> FileChangeEvent:
        return FileChangeEvent(
            id=uuid4(),
            path_in_datasite=Path(path),
            datasite_email=self.email,
            content=content,
            old_hash=old,
            new_hash=new,
            submitted_timestamp=0.0,
            timestamp=0.0,
        )


class WatcherSyncer(DatasiteWatcherSyncer):
    """A researcher's side: takes states and outputs of its own submissions, and signed mock data."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    connection_router: Router
    log: SyncLog
    #: By datasite: bytes of its files, by path.
    _kept: dict[str, dict[str, int]] = PrivateAttr(default_factory=dict)
    #: Looks at a datasite's mock data that did not come to the end yet: whether they have left nothing unread.
    _passes: dict[str, bool] = PrivateAttr(default_factory=dict)
    #: Datasites of whose mock data all that lies there has not had its turn since `begin_mocks`.
    _cut: set[str] = PrivateAttr(default_factory=set)
    _whole: set[str] = PrivateAttr(default_factory=set)

    def begin_mocks(self) -> None:
        """Ask `is_cut` of the syncs from now on."""
        self._passes = dict.fromkeys(self._passes, False)  # what they saw before may have changed since
        self._cut.clear()
        self._whole.clear()

    @property
    def is_cut(self) -> bool:
        """Return whether the syncs since `begin_mocks` have left mock data for the next."""
        return bool(self._cut)

    def sync_down(self, peer_emails: list[str]) -> None:
        """Take what each datasite has sent. One datasite's trouble doesn't hold up another."""
        connection = self.connection_router.connection

        def take_mocks(peer: str) -> None:
            is_read, is_over = fetch_mocks(connection, self.log, peer, self.syftbox_folder)
            is_read = self._passes.pop(peer, True) and is_read
            if not is_over:
                self._passes[peer] = is_read
            elif is_read:
                self._whole.add(peer)
            self._cut = (self._cut | {peer}) - self._whole

        _with_each(connection, peer_emails, self.take_events, take_mocks)

    def take_events(self, peer: str) -> None:
        """Apply the messages of one datasite, by their signed numbers; remove them from the outbox."""
        router = self.connection_router
        if not router.peer_store.has_peer_bundle(peer):
            return  # without its pinned keys a good message can't be told from a bad one: all wait
        messages = [(key.rpartition("/")[2], key) for key in router.connection.outbox_keys(peer)]
        _take_each(router, self.log, peer, messages, lambda plain, name: self._apply(peer, plain, name))

    def _apply(self, peer: str, plain: bytes, name: str) -> None:
        try:
            message = FileChangeEventsMessage.model_validate_json(plain)
        except (ValidationError, ValueError) as error:
            raise Refused(f"not an event message: {error}") from error
        if message.message_filepath.as_string() != name:
            raise Refused("its name is not the one that was signed: an old message under a new name")
        number = int(message.message_filepath.timestamp)
        if not -LARGEST_NUMBER <= number <= LARGEST_NUMBER:
            raise Refused(f"its number is larger than {LARGEST_NUMBER}")
        files: dict[str, bytes] = {}
        for event in message.events:
            path = event.path_in_datasite.as_posix()
            if event.datasite_email != peer:
                raise Refused(f"it speaks for {event.datasite_email}, but came from {peer}")
            job_name = outgoing_job(path, self.email)
            if event.is_deleted or event.content is None or job_name is None or not self._has_submitted(peer, job_name):
                raise Refused(f"path {path[:200]}: a datasite sends states and outputs of our submissions only")
            content = content_bytes(event.content)
            if hashlib.sha256(content).hexdigest() != event.new_hash:
                raise Refused(f"path {path}: content and hash differ")
            files[path] = content
        # A message that was delayed must not put an older state over a newer one.
        newer = {path: content for path, content in files.items() if number > self.log.applied(peer, path)}
        kept = self._with_room(peer, newer)
        for path, content in newer.items():
            write_whole(self.syftbox_folder / peer / path, content)
            kept[path] = len(content)
            self.log.mark_applied(peer, path, number)

    def _has_submitted(self, peer: str, job_name: str) -> bool:
        return (self.syftbox_folder / peer / submission_folder(self.email, job_name)).is_dir()

    def _with_room(self, peer: str, files: dict[str, bytes]) -> dict[str, int]:
        """Count what is kept of a datasite, once in a process; refuse `files` that are more than is kept of one."""
        datasite = self.syftbox_folder / peer
        if peer not in self._kept:
            found = (file for file in (datasite / outgoing_folder(self.email)).rglob("*") if file.is_file())
            self._kept[peer] = {file.relative_to(datasite).as_posix(): file.stat().st_size for file in found}
        kept = self._kept[peer]
        sizes = {**kept, **{path: len(content) for path, content in files.items()}}
        if len(sizes) > MOST_RESULTS or sum(sizes.values()) > MOST_RESULTS_BYTES:
            raise Refused(
                f"{len(kept)} files of {peer} are kept, and {MOST_RESULTS} of {MOST_RESULTS_BYTES} bytes are the most; "
                f"remove old ones from {datasite / outgoing_folder(self.email)}, start again, and submit it again"
            )
        return kept


def _with_each(connection: StoreConnection, peers: list[str], *acts: Callable[[str], None]) -> None:
    """Do all `acts` with each peer. A place of one peer's that is out of order is reported once and passed over, and
    trouble with our own disk is logged; trouble with the whole store, or that nobody foresaw, is raised when every
    peer had its turn."""
    failed: Exception | None = None
    for peer in peers:
        for act in acts:
            try:
                act(peer)
            except WHOLE_STORE as error:
                logger.error("sync with %s: %s", peer, error)
                failed = error
            except StoreError as error:
                connection.refuse_folder(f"{act.__name__} {peer}", str(error))
            except OSError as error:
                logger.error("%s %s: %s", act.__name__, peer, error)
            except Exception as error:
                failed = error
    if failed is not None:
        raise failed


class Manager(SyftboxManager):
    """Syft's sync engine, made of the guarded parts."""

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As syft's, without checkpoints and without merging of outboxes."""
        super().sync(auto_checkpoint=False, auto_compact=False)


def _size(submission: Submission) -> int:
    return sum(map(len, submission.files.values()))


def _kept(folder: Path) -> tuple[int, int]:
    """Return submissions in the folder of one submitter, and bytes of them."""
    if not folder.is_dir():
        return 0, 0
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return sum(1 for _ in folder.iterdir()), sum(sizes)


def _files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def proposal(sender: str, owner: str, files: dict[str, bytes]) -> ProposedFileChangesMessage:
    """Return the one message that a submission is: all its files, none there before. Keys are paths in the datasite."""
    return ProposedFileChangesMessage(
        sender_email=sender,
        proposed_file_changes=[
            ProposedFileChange(path_in_datasite=Path(path), content=content, datasite_email=owner)
            for path, content in files.items()
        ],
    )
