"""How a syft client is put together over a store, of the guarded parts and nothing else.

Stock syft builds its clients for Google Drive, with caches in memory or folders beside the SyftBox. This one has the
connection of `connection`, the guards of `guards`, and keys outside the SyftBox. It starts no thread and syncs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import datasites.control.without_ipython  # noqa: F401

from syft.sync.file_writer import FileWriter
from syft.sync.job_file_change_handler import JobFileChangeHandler
from syft.sync.sync.caches.datasite_owner_cache import DataSiteOwnerEventCache
from syft.sync.sync.caches.datasite_watcher_cache import DataSiteWatcherCache
from syft_datasets.config import SyftBoxConfig
from syft_datasets.dataset_manager import SyftDatasetManager
from syft_job import SyftJobConfig
from syft_job.client import JobClient
from syft_job.job_ref import JobRef
from syft_job.job_storage import JobStorage
from syft_perms import SyftPermContext
from syft_rds import SyftRDSClient
from syft_rds.config import COLLECTION_SUBPATH, DATASET_COLLECTION_SPECS

from datasites.control.connection import StoreConnection
from datasites.control.guards import Manager, OwnerSyncer, Peers, Router, WatcherSyncer
from datasites.control.sealer import StrictPeerStore
from datasites.control.sync_state import SyncLog
from datasites.study.files import put_whole
from datasites.study.roster import Roster
from datasites.transport.quarantine import Quarantine
from datasites.transport.store import Store

SyftRole = Literal["hospital", "researcher"]


class _Jobs(JobStorage):
    """Syft's job storage with atomic writes: a crash never leaves half a state file."""

    def _write(self, codec: Any, path: Path, obj: Any, ref: JobRef, reader_email: str) -> Path:
        with put_whole(path) as temporary:
            super()._write(codec, temporary, obj, ref, reader_email)
        return path


class _JobClient(JobClient):
    """Syft's job client over `_Jobs`. Submitting goes through `ResearcherControl.submit`."""

    def __init__(self, config: SyftJobConfig) -> None:
        config.get_user_dir(config.current_user_email).mkdir(parents=True, exist_ok=True)
        super().__init__(config, config.current_user_email)
        self.manager: JobStorage = _Jobs(config=config)


def make_client(
    email: str,
    syftbox_folder: Path,
    store: Store,
    state_dir: Path,
    role: SyftRole,
    roster: Roster,
    keys: StrictPeerStore,
) -> SyftRDSClient:
    """Make a syft client over `store` with every guard on.

    `state_dir` holds what is private to the party: its log, and the quarantine. Syft's keys come opened; they live
    outside the SyftBox, where no message can reach them.
    """
    syftbox = Path(syftbox_folder)
    (syftbox / email).mkdir(parents=True, exist_ok=True)
    log = SyncLog(state_dir / "control.sqlite")
    connection = StoreConnection(
        email=email, store=store, log=log, quarantine=Quarantine(state_dir / "quarantine"), roster=roster
    )
    router = Router(connections=[connection], peer_store=keys)
    hospital = role == "hospital"
    owner = watcher = None
    if hospital:
        collections = syftbox / email / COLLECTION_SUBPATH
        owner = OwnerSyncer(
            event_cache=DataSiteOwnerEventCache(email=email, collections_folder=collections),
            connection_router=router,
            email=email,
            syftbox_folder=syftbox,
            perm_context=SyftPermContext(datasite=syftbox / email),
            collections_folder=collections,
            collection_specs=DATASET_COLLECTION_SPECS,
            log=log,
        )
    else:
        watcher = WatcherSyncer(
            syftbox_folder=syftbox,
            email=email,
            connection_router=router,
            datasite_watcher_cache=DataSiteWatcherCache(connection_router=router, syftbox_folder=syftbox),
            log=log,
        )
    manager = Manager(
        syftbox_folder=syftbox,
        email=email,
        file_writer=FileWriter(base_path=syftbox, write_files=True),
        datasite_owner_syncer=owner,
        job_file_change_handler=JobFileChangeHandler() if hospital else None,
        datasite_watcher_syncer=watcher,
        peer_manager=Peers(
            syftbox_folder=syftbox,
            connection_router=router,
            peer_store=keys,
            force_ignore_peer_version=True,
            suppress_version_warnings=True,
            has_do_role=hospital,
            has_ds_role=not hospital,
        ),
        has_do_role=hospital,
        has_ds_role=not hospital,
    )
    return SyftRDSClient(
        sync_engine=manager,
        job_client=_JobClient(SyftJobConfig(syftbox_folder=syftbox, current_user_email=email, has_do_role=hospital)),
        job_runner=None,
        dataset_manager=SyftDatasetManager.from_config(SyftBoxConfig(syftbox_folder=syftbox, email=email)),
    )
