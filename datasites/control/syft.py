"""Syft as the control plane over any store, and the two small interfaces through which other rooms use it.

`HospitalControl`: accept researchers, publish a dataset's mock (its private side is a pointer file only, I12), read
submissions without trusting them, record a decision. `ResearcherControl`: add hospitals, see mock data, submit a
study, read its state. Neither syncs unless `sync()` is called, so nothing changes between what was shown and what is
decided. Syft's own types stay in this room.

One process at a time syncs a SyftBox with its state folder.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import datasites.control.without_ipython  # noqa: F401

from syft_datasets.dataset_manager import SHARE_WITH_ANY
from syft_job.job_ref import JobRef
from syft_job.migrations.registry import JOB_PROTOCOL_VERSION
from syft_job.models import JobState, JobStatus, JobSubmissionMetadata
from syft_rds import SyftRDSClient
from syft_rds.config import COLLECTION_SUBPATH

from datasites.control.client import SyftRole, make_client
from datasites.control.connection import StoreConnection, inbox_folder, outbox_folder
from datasites.control.guards import Manager, proposal
from datasites.control.mocks import FILE, SIGNED, SYNCS_FOR_ALL, MockManifest, OwnMocks, check_mock, next_version
from datasites.control.sealer import StrictPeerStore, SyftSealer, checked_bundle, open_keys, syft_fingerprint
from datasites.control.submissions import (
    FILE_PART,
    MAX_CODE_BYTES,
    MAX_CONFIG_BYTES,
    RUN_SCRIPT,
    checked_job_name,
    read_table,
    submission_folder,
)
from datasites.study.errors import DatasitesError
from datasites.study.files import write_whole
from datasites.study.identity import Identity, IdentityError
from datasites.study.roster import Roster
from datasites.transport.quarantine import Quarantine
from datasites.transport.store import WHOLE_STORE, Store, StoreError
from datasites.transport.writing import clear_incoming, put_folder

logger = logging.getLogger(__name__)

MAX_REASON = 2000
#: Submissions that are not sent yet, in the SyftBox of their researcher, by hospital and name.
OUTGOING = Path(".cache", "outgoing")


class ControlError(DatasitesError, ValueError):
    """A call on the control plane can't be done; the message names the thing, the rule and the remedy."""


class _Control:
    """What both sides share."""

    role: SyftRole

    def __init__(self, client: SyftRDSClient, store: Store, roster: Roster) -> None:
        self._client = client
        self._manager: Manager = client.sync_engine
        self._connection: StoreConnection = self._manager.peer_manager.connection_router.connection
        self._keys: StrictPeerStore = self._manager.peer_manager.peer_store
        self.email: str = client.email
        self.store = store
        self._roster = roster
        self._sealer = SyftSealer(self._keys, roster, self._connection.stored_bundle)
        self._publish_keys()

    def _publish_keys(self) -> None:
        bundle = json.dumps({"public_encryption_bundle": self._keys.get_public_bundle()}, sort_keys=True)
        self._connection.write_encryption_bundle(self.email, bundle)

    @property
    def quarantine(self) -> Quarantine:
        """Return refused control-plane messages."""
        return self._connection.quarantine

    def syft_fingerprint(self) -> str:
        """Return the fingerprint of our syft keys, for our roster entry."""
        return syft_fingerprint(self._keys)

    def sealer(self) -> SyftSealer:
        """Return what seals letters for any pinned party; for the mailroom."""
        return self._sealer

    def pin(self, roster: Roster) -> None:
        """Use another roster from now on. A peer that isn't in it is no peer any more."""
        self._roster = roster
        self._connection.roster = roster
        self._sealer.pin(roster)

    def sync(self) -> None:
        """Exchange messages with all peers. Raises `StoreError` when the store failed for one; the others are done.

        What all may read of ours is put again where the store has lost it.
        """
        self.put_again()
        self._manager.sync()

    def put_again(self) -> None:
        """Put what all may read of ours where the store has lost it: without our keys nobody can write to us.

        For whoever waits long without a `sync`, too. Raises `StoreError` only where the store as a whole fails.
        """
        for folder, put_again in self._put_again().items():
            try:
                put_again()
            except WHOLE_STORE:
                raise
            except StoreError as error:  # its place is out of order; who has it already goes on
                self._connection.refuse_folder(f"{folder}/{self.email}", str(error))

    def _put_again(self) -> dict[str, Callable[[], None]]:
        """Return what puts our own files again, by the folder in which they lie."""
        return {"identities": self._publish_keys}

    def close(self) -> None:
        """Release files and threads."""
        self._manager.peer_manager.shutdown()
        self.quarantine.close()
        self._connection.log.close()

    def _add_peer(self, email: str, role: SyftRole) -> None:
        entry = self._roster.get(email)
        if entry.role != role:
            raise ControlError(f"{email} is pinned as {entry.role}, expected a {role}; correct the roster")
        if not entry.syft_fingerprint:
            raise IdentityError(f"roster: the entry of {email} has no syft fingerprint; pin a complete entry")
        self._manager.add_peer(email, force=True, verbose=False, sync=False)

    def _peers(self) -> list[str]:
        return sorted(
            email
            for email, entry in self._connection._get_peers_json().items()
            if entry["state"] in ("accepted", "requested_by_me")
        )

    def _state(self, ref: JobRef) -> JobState | None:
        try:
            return self._client.job_client.manager.read_state(ref)
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class SubmittedJob:
    """A submission as it lies in the inbox: `files` are those under code/, by relative path.

    `status` is syft's (pending, approved, rejected, done, failed).
    """

    name: str
    submitted_by: str
    files: Mapping[str, bytes]
    status: str
    reason: str


class HospitalControl(_Control):
    """A hospital's side of the control plane. Build it with `open`."""

    role: SyftRole = "hospital"

    def __init__(self, client: SyftRDSClient, store: Store, roster: Roster, identity: Identity) -> None:
        super().__init__(client, store, roster)
        self._identity = identity
        self._mocks = OwnMocks(self._connection, identity)

    def _put_again(self) -> dict[str, Callable[[], None]]:
        return {**super()._put_again(), "collections": self._mocks.put_again}

    @classmethod
    def open(cls, identity: Identity, syftbox_folder: Path, store: Store, state_dir: Path, roster: Roster) -> Self:
        """Start, or go on after a restart."""
        keys = open_keys(identity.email, state_dir / "syft_keys.json")
        clear_incoming(syftbox_folder)
        client = make_client(identity.email, syftbox_folder, store, state_dir, cls.role, roster, keys)
        return cls(client, store, roster, identity)

    def accept_peers(self, emails: list[str]) -> None:
        """Accept pinned researchers, before or after they ask.

        Raises `IdentityError` for one that isn't pinned, or not completely, after all others were accepted.
        """
        failed: IdentityError | None = None
        for email in emails:
            try:
                self._add_peer(email, "researcher")
            except IdentityError as error:
                failed = error
        if failed is not None:
            raise failed

    def publish_dataset(self, name: str, mock_path: Path, summary: str = "") -> MockManifest:
        """Publish the mock of a dataset, signed. The private side in the SyftBox is a pointer file and nothing else.

        May be repeated; a changed mock or summary becomes the next version.
        """
        checked_job_name(name)
        if not FILE.fullmatch(mock_path.name) or mock_path.name in (SIGNED, "dataset.yaml"):
            raise ControlError(f"mock file {mock_path.name!r}: use letters, digits, . _ - and not {SIGNED}")
        datasets = self._client.dataset_manager
        mock = mock_path.read_bytes()
        kept = next((dataset for dataset in datasets.get_all(datasite=self.email) if dataset.name == name), None)
        if kept is not None:
            same = kept.summary == summary and [file.read_bytes() for file in kept.mock_files] == [mock]
            if not same:
                datasets.delete(name, require_confirmation=False)
                kept = None
        if kept is None:
            pointer = self._manager.syftbox_folder / ".cache" / "pointer" / "pointer.json"
            write_whole(pointer, json.dumps({"pointer": f"datasites://{name}"}).encode())
            kept = datasets.create(
                name=name, mock_path=mock_path, private_path=pointer, summary=summary, users=SHARE_WITH_ANY
            )
        files = {file.name: file.read_bytes() for file in kept.mock_files}
        files["dataset.yaml"] = (kept.mock_dir / "dataset.yaml").read_bytes()
        manifest = next_version(self.email, self._connection.log, name, mock_path.name, summary, files)
        self._mocks.publish(manifest, kept.mock_dir, files)
        return manifest

    def offer_datasets(self, names: Collection[str]) -> None:
        """Offer these datasets, as published, and no other: mocks of others leave the store and our SyftBox."""
        datasets = self._client.dataset_manager
        for former in [one.name for one in datasets.get_all(datasite=self.email) if one.name not in names]:
            datasets.delete(former, require_confirmation=False)
        self._mocks.offer(names)

    def jobs(self, known: Collection[tuple[str, str]] = ()) -> list[SubmittedJob]:
        """Return all submissions on disk but those that are `known` as (name, submitter) and so aren't read again.

        By name. Doesn't sync; reads no link and runs nothing.
        """
        return [job for ref in self._waiting(known) if (job := self._read(ref)) is not None]

    def next_job(self, known: Collection[tuple[str, str]], order: Callable[[str], int | None]) -> SubmittedJob | None:
        """Return the first of `jobs` by the order of its submitter, then by name; no other's files are read.

        order: None for a submitter whose submissions stay where they are for now.
        """
        waiting = [(order(ref.ds_email), ref.job_name, ref) for ref in self._waiting(known)]
        for _, _, ref in sorted((w for w in waiting if w[0] is not None), key=lambda w: w[:2]):
            job = self._read(ref)
            if job is not None:
                return job
        return None

    def _waiting(self, known: Collection[tuple[str, str]]) -> list[JobRef]:
        self._client.job_client.scan_inbox()
        return [ref for ref in self._refs() if (ref.job_name, ref.ds_email) not in known]

    def _read(self, ref: JobRef) -> SubmittedJob | None:
        state = self._state(ref)
        if state is None:
            return None
        files = _read_tree(self._folder(ref) / "code")
        return SubmittedJob(ref.job_name, ref.ds_email, files, state.status.value, state.review_reason or "")

    def _refs(self) -> list[JobRef]:
        manager = self._client.job_client.manager
        return [ref for ref in manager.iter_submission_refs(self.email) if ref.protocol_version == JOB_PROTOCOL_VERSION]

    def _folder(self, ref: JobRef) -> Path:
        return self._manager.syftbox_folder / self.email / submission_folder(ref.ds_email, ref.job_name)

    def _ref(self, job_name: str, submitted_by: str | None) -> JobRef:
        refs = [ref for ref in self._refs() if ref.job_name == job_name and submitted_by in (None, ref.ds_email)]
        if not refs:
            raise ControlError(f"submission {job_name}: there is none; see `jobs()`")
        if len(refs) > 1:
            raise ControlError(f"submission {job_name}: several researchers used that name; say whose")
        return refs[0]

    def record_approval(self, job_name: str, reason: str, submitted_by: str | None = None) -> None:
        """Record in syft that the submission was approved. `reason` states the frozen hash that people approved.

        Doesn't sync before, so it can't approve what came in between, nor after. The same again changes nothing, also
        where its result is published by then; a submission that was decided otherwise raises `ControlError`.
        """
        self._decide(job_name, JobStatus.APPROVED, reason, submitted_by)

    def record_rejection(self, job_name: str, reason: str, submitted_by: str | None = None) -> None:
        """Record in syft that the submission was rejected; as `record_approval`."""
        self._decide(job_name, JobStatus.REJECTED, reason, submitted_by)

    def record_revocation(self, job_name: str, reason: str, submitted_by: str | None = None) -> None:
        """Record in syft that the approval is revoked. As `record_approval`, but after it; without one, it rejects."""
        self._decide(job_name, JobStatus.REJECTED, reason, submitted_by, open_states=(JobStatus.APPROVED,))

    def _decide(
        self,
        job_name: str,
        status: JobStatus,
        reason: str,
        submitted_by: str | None,
        open_states: tuple[JobStatus, ...] = (),
    ) -> None:
        if not reason or len(reason) > MAX_REASON:
            raise ControlError(f"submission {job_name}: a decision needs a reason of 1 to {MAX_REASON} characters")
        self._client.job_client.scan_inbox()
        ref = self._ref(job_name, submitted_by)
        state = self._state(ref)
        stands = (status, JobStatus.DONE) if status == JobStatus.APPROVED else (status,)
        if state is not None and state.status in stands and state.review_reason == reason:
            return
        if state is None or state.status not in (JobStatus.PENDING, *open_states):
            now = "unknown" if state is None else state.status.value
            raise ControlError(f"submission {job_name} is {now}, not pending; a decision is made once")
        at, approved = datetime.now(UTC), status == JobStatus.APPROVED
        decided: dict[str, Any] = {"status": status, "review_reason": reason}
        if approved:
            decided |= {"approved_by": self.email, "approved_at": at, "approval_method": "manual"}
        else:
            decided |= {"rejected_by": self.email, "rejected_at": at}
        self._client.job_client.manager.write_state(ref, state.model_copy(update=decided))

    def publish_result(self, job_name: str, files: Mapping[str, bytes], submitted_by: str | None = None) -> None:
        """Make files the outputs of an approved submission, which is done then; they go out at the next `sync`.

        The same again changes nothing, wherever it was interrupted: what says that it is done is written last.
        """
        ref = self._ref(job_name, submitted_by)
        state = self._state(ref)
        if state is None or state.status not in (JobStatus.APPROVED, JobStatus.DONE):
            raise ControlError(f"submission {job_name}: only an approved one has results")
        if bad := [name for name in files if not FILE_PART.fullmatch(name)]:
            raise ControlError(f"result file {bad[0]!r}: use letters, digits, . _ -")
        outputs = self._client.job_client.manager.review_dir(ref) / "outputs"
        for name, data in files.items():
            if not (outputs / name).is_file() or (outputs / name).read_bytes() != data:
                write_whole(outputs / name, data)
        if state.status != JobStatus.DONE:
            # As stock syft says it of a job whose result was deposited: before, it shows no outputs.
            done = {"status": JobStatus.DONE, "completed_at": datetime.now(UTC), "return_code": 0}
            self._client.job_client.manager.write_state(ref, state.model_copy(update=done))

    def folders(self) -> list[str]:
        """Store folders in which something for us would appear; for `Store.wait`."""
        return [f"p2p/{self.email}", *(inbox_folder(self.email, peer) for peer in self._peers())]


@dataclass(frozen=True)
class JobDecision:
    """State of a submission as its hospital last said it: pending, approved, revoked, rejected, done, failed.

    Until it says anything "submitted", or "not submitted" where nothing was sent; "unreadable" when what it sent is not
    a state.
    """

    state: str
    reason: str


class ResearcherControl(_Control):
    """A researcher's side of the control plane. Build it with `open`."""

    role: SyftRole = "researcher"

    @classmethod
    def open(cls, email: str, syftbox_folder: Path, store: Store, state_dir: Path, roster: Roster) -> Self:
        """Start, or go on after a restart."""
        keys = open_keys(email, state_dir / "syft_keys.json")
        clear_incoming(syftbox_folder)
        return cls(make_client(email, syftbox_folder, store, state_dir, cls.role, roster, keys), store, roster)

    def add_hospital(self, email: str) -> None:
        """Ask a pinned hospital to be our peer."""
        self._add_peer(email, "hospital")

    def sync_all(self) -> None:
        """As `sync`, and again while more mock data, or names of them, lie in the store than one sync looks at.

        Of more than is kept of a hospital in any case, the rest is left to later syncs, and the log says so.
        """
        self._manager.datasite_watcher_syncer.begin_mocks()
        for _ in range(SYNCS_FOR_ALL):
            self.sync()
            if not self._manager.datasite_watcher_syncer.is_cut:
                return
        logger.warning("store: more mock data than hospitals may have; the rest is read at the next syncs")

    def datasets(self, email: str) -> list[MockManifest]:
        """Return mock datasets of a hospital that have come, each checked again against its signature."""
        root = self._manager.syftbox_folder / email / COLLECTION_SUBPATH
        return [self._mock(email, folder)[0] for folder in sorted(root.glob("*")) if (folder / SIGNED).is_file()]

    def mock(self, email: str, name: str) -> bytes:
        """Return the mock of a dataset, checked against its signature."""
        folder = self._manager.syftbox_folder / email / COLLECTION_SUBPATH / checked_job_name(name)
        if not (folder / SIGNED).is_file():
            raise ControlError(f"dataset {name} of {email}: no mock has come; call `sync()`, or ask the hospital")
        manifest, files = self._mock(email, folder)
        return files[manifest.mock]

    def _mock(self, email: str, folder: Path) -> tuple[MockManifest, dict[str, bytes]]:
        files = _read_tree(folder)
        listed = MockManifest.model_validate(json.loads(files[SIGNED])["manifest"]).files
        files = {name: data for name, data in files.items() if name in listed or name == SIGNED}
        return check_mock(email, folder.name, files, self._roster), files

    def submit(self, email: str, job_name: str, files: Mapping[str, bytes]) -> None:
        """Submit a study (text files by relative path) to a hospital under a new name.

        Calling it again with the same content sends it again, which changes nothing at the hospital; other content
        under the same name raises `ControlError`.
        """
        checked_job_name(job_name)
        if email not in self._peers():
            raise ControlError(f"{email} is not our peer; call `add_hospital` first")
        checked_bundle(email, self._connection.stored_bundle(email), self._roster)
        self._manager.load_peers()
        code = {f"code/{path}": data for path, data in files.items()}
        if not code or sum(map(len, code.values())) > MAX_CODE_BYTES:
            raise ControlError(f"{job_name}: a study holds 1 to {MAX_CODE_BYTES} bytes of text")
        place, received = submission_folder(self.email, job_name), self._submitted(email, job_name)
        # Put in its place once it was sent, so that nothing which was not looks as if it were.
        outgoing = self._manager.syftbox_folder / OUTGOING / email / job_name
        kept = next((folder for folder in (received, outgoing) if folder.is_dir()), None)
        if kept is not None:
            sent = _read_tree(kept)
            if {path: data for path, data in sent.items() if path.startswith("code/")} != code:
                raise ControlError(f"{job_name} was submitted to {email} with other content; choose another name")
        else:
            sent = {"config.yaml": self._config(email, job_name, code), "run.sh": RUN_SCRIPT, **code}
            put_folder(self._manager.syftbox_folder, outgoing, sent)
        message = proposal(self.email, email, {f"{place}/{path}": data for path, data in sent.items()})
        self._manager.peer_manager.connection_router.watcher_send_proposed_file_changes_message(email, message)
        if kept != received:
            received.parent.mkdir(parents=True, exist_ok=True)
            os.rename(outgoing, received)  # lost in a power cut, it is sent again

    def _submitted(self, email: str, job_name: str) -> Path:
        """Return where a submission lies once it was sent."""
        return self._manager.syftbox_folder / email / submission_folder(self.email, job_name)

    def _config(self, email: str, job_name: str, code: Mapping[str, bytes]) -> bytes:
        ref = JobRef(email, self.email, job_name, JOB_PROTOCOL_VERSION)
        config = JobSubmissionMetadata(
            name=job_name,
            type="python",
            submitted_by=self.email,
            datasite_email=email,
            submitted_at=datetime.now(UTC),
            files=[path.removeprefix("code/") for path in code],
            is_folder_submission=True,
        )
        scratch = self._manager.syftbox_folder / ".cache" / "config.yaml"
        manager = self._client.job_client.manager
        manager._write(manager._codec_for(ref.protocol_version), scratch, config, ref, email)
        return scratch.read_bytes()

    def job_state(self, email: str, job_name: str) -> JobDecision:
        """Return what the hospital last said about a submission; until it says anything, whether it was sent.

        Raises nothing for what the hospital wrote: one that sends nonsense must not hide what the others say.
        """
        ref = JobRef(email, self.email, checked_job_name(job_name), JOB_PROTOCOL_VERSION)
        manager = self._client.job_client.manager
        path = manager._codec_for(ref.protocol_version).state_path(ref)
        try:
            with path.open("rb") as file:
                read_table(file.read(MAX_CONFIG_BYTES + 1), "state.yaml")
            state = manager.read_state(ref)
            revoked = state.status == JobStatus.REJECTED and state.approved_at is not None
            state_name = "revoked" if revoked else state.status.value
            return JobDecision(state_name, str(state.review_reason or "")[:MAX_REASON])
        except FileNotFoundError:
            return JobDecision("submitted" if self._submitted(email, job_name).is_dir() else "not submitted", "")
        except Exception as error:  # syft raises various types on what doesn't fit its models
            return JobDecision("unreadable", f"{email} sent a state that can't be read: {error}"[:MAX_REASON])

    def results(self, email: str, job_name: str) -> dict[str, bytes]:
        """Return files that the hospital has published for a submission."""
        ref = JobRef(email, self.email, checked_job_name(job_name), JOB_PROTOCOL_VERSION)
        return _read_tree(self._client.job_client.manager.review_dir(ref) / "outputs")

    def folders(self) -> list[str]:
        """Store folders in which something for us would appear; for `Store.wait`."""
        return [folder for peer in self._peers() for folder in (outbox_folder(peer, self.email), f"collections/{peer}")]


def _read_tree(root: Path) -> dict[str, bytes]:
    """Return regular files below `root` by relative path, in order; links and hidden files are passed over."""
    found = {}
    for folder, names, files in os.walk(root, followlinks=False):
        names[:] = sorted(name for name in names if not name.startswith((".", "__pycache__")))
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found
