"""What a hostile hospital puts into its outbox for the researcher, and how that is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from uuid import uuid4

from syft.sync.events.file_change_event import (
    FileChangeEvent,
    FileChangeEventsMessage,
    FileChangeEventsMessageFileName,
)

from datasites.control.connection import outbox_folder
from tests.transport.parties import HOSPITALS, RESEARCHER, Party


def refused(party: Party, reason: str) -> None:
    """One more entry in quarantine with that reason, and the channel is empty: nobody is blocked."""
    before = len(party.control.quarantine.entries())
    party.control.sync()
    kept = party.control.quarantine.entries()
    assert len(kept) == before + 1, [entry.reason for entry in kept]
    assert reason in kept[-1].reason, kept[-1].reason
    party.control.sync()
    assert len(party.control.quarantine.entries()) == before + 1


def event(path: str, content: bytes, owner: str = HOSPITALS[0], **changed: Any) -> FileChangeEvent:
    fields: dict[str, Any] = {
        "id": uuid4(), "path_in_datasite": Path(path), "datasite_email": owner, "content": content,
        "new_hash": hashlib.sha256(content).hexdigest(), "submitted_timestamp": 0.0, "timestamp": 0.0,
    }  # fmt: skip
    return FileChangeEvent(**{**fields, **changed})


def announce(
    signer: Party, *events: FileChangeEvent, number: float = 1.0, name: str = "", channel: str = HOSPITALS[0]
) -> str:
    """Put an event message, signed by `signer`, into `channel`'s outbox for the researcher."""
    message = FileChangeEventsMessage(
        events=list(events), message_filepath=FileChangeEventsMessageFileName(timestamp=number)
    )
    key = f"{outbox_folder(channel, RESEARCHER)}/{name or message.message_filepath.as_string()}"
    signer.control.store.put(key, signer.control.sealer().seal(RESEARCHER, message.as_compressed_data()))
    return key


STATE = f"app_data/job/review/{RESEARCHER}/v1/heart-1/state.yaml"


def state_of(status: str) -> bytes:
    return f"canonical_name: JobState\nversion: '1'\nstatus: {status}\n".encode()
