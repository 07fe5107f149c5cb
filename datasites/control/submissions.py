"""What a submission is on the wire and on disk, and the check of a message that claims to be one.

A submission is one message that holds `config.yaml`, `run.sh` and files under `code/`, all under
`app_data/job/inbox/<submitter>/v1/<name>/` of the datasite. Its name has letters, digits, `_` and `-` only, since
stock syft puts names into permission patterns. Nothing in it is ever run from there; `run.sh` is never run at all.
Pure: bytes in, a `Submission` or `Refused` out.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import datasites.control.without_ipython  # noqa: F401

import yaml
from pydantic import ValidationError
from syft.sync.messages.proposed_filechange import ProposedFileChangesMessage
from syft_job.migrations.registry import JOB_PROTOCOL_VERSION

from datasites.study.errors import DatasitesError

NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
FILE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
PROTOCOL = f"v{JOB_PROTOCOL_VERSION}"
MAX_FILES = 200
MAX_CONFIG_BYTES = 64 * 1024
MAX_CODE_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 6
#: Of a message once it is unpacked; the one file in it.
MAX_PLAIN_BYTES = 64 * 1024 * 1024
MESSAGE_FILE = "proposed_file_changes.json"
#: Submissions of one submitter, and bytes of them, that a datasite keeps.
MOST_KEPT, MOST_KEPT_BYTES = 1_000, 1024**3
#: Files of one datasite (states and outputs), and bytes of them, that a researcher keeps.
MOST_RESULTS, MOST_RESULTS_BYTES = 10_000, 1024**3

RUN_SCRIPT = b"""#!/bin/sh
# A datasite runs the approved, frozen copy of the study in its sandbox. This file is never run.
exit 64
"""


class Refused(DatasitesError):
    """A control-plane message breaks a rule; the message says which."""


def bounded_message(data: bytes) -> bytes:
    """Return the JSON inside a syft message (a gzipped tar of one file); `Refused` above 64 MiB, before it is unpacked.

    Only the first entry is looked at, and only as a plain file: a sparse one of 100 bytes can stand for gigabytes.
    """
    inflate = zlib.decompressobj(wbits=31)
    plain = inflate.decompress(data, MAX_PLAIN_BYTES)
    if inflate.unconsumed_tail or not inflate.eof:
        raise Refused(f"unpacks to more than {MAX_PLAIN_BYTES} bytes, or is cut off")
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
        entry = archive.next()
        if entry is None or entry.name != MESSAGE_FILE or entry.type != tarfile.REGTYPE or entry.issparse():
            raise Refused(f"not a syft message, which is one plain file {MESSAGE_FILE}")
        file = archive.extractfile(entry)
        assert file is not None
        return file.read(MAX_PLAIN_BYTES)


@dataclass(frozen=True)
class Submission:
    """A checked submission: `files` by path within the submission's folder."""

    submitter: str
    job_name: str
    files: dict[str, bytes]


def checked_job_name(name: str) -> str:
    """Return `name` itself; raise `ValueError` when it isn't one that a datasite accepts."""
    if not NAME.fullmatch(name) or re.fullmatch(r"v\d+", name):
        raise ValueError(f"submission name {name[:100]!r}: use 1 to 80 letters, digits, _ or -, and not v<number>")
    return name


def submission_folder(submitter: str, job_name: str) -> str:
    """Return where a submission lies in a datasite."""
    return f"app_data/job/inbox/{submitter}/{PROTOCOL}/{job_name}"


def outgoing_folder(recipient: str) -> str:
    """Return the folder below which a datasite may send to `recipient`."""
    return f"app_data/job/review/{recipient}/{PROTOCOL}"


def outgoing_job(path: str, recipient: str) -> str | None:
    """Return the submission whose state or output this file is; None for one that a datasite may not send (I7)."""
    prefix = outgoing_folder(recipient) + "/"
    if not path.startswith(prefix):
        return None
    job_name, _, rest = path[len(prefix) :].partition("/")
    parts = rest.split("/")
    is_output = len(parts) == 2 and parts[0] == "outputs" and FILE_PART.fullmatch(parts[1])
    return job_name if NAME.fullmatch(job_name) and (rest == "state.yaml" or is_output) else None


def is_outgoing_path(path: str, recipient: str) -> bool:
    """Return whether a datasite may send this file: state or output of a submission of the recipient (I7)."""
    return outgoing_job(path, recipient) is not None


def content_bytes(content: str | bytes) -> bytes:
    """Return a syft message's content as bytes."""
    return content.encode("utf-8") if isinstance(content, str) else content


def read_submission_message(plain: bytes, name: str, sender: str, owner: str) -> Submission:
    """Check an opened message that came by `sender`'s channel under `name`; raises `Refused`.

    The signature was checked before; what a peer signed may still be a lie about sender, owner or path.
    """
    try:
        message = ProposedFileChangesMessage.model_validate_json(plain)
    except (ValidationError, ValueError) as error:
        raise Refused(f"not a proposal: {error}") from error
    if message.sender_email != sender:
        raise Refused(f"it says that it is from {message.sender_email[:200]}, but came from {sender}")
    if message.message_filename.as_string() != name:
        raise Refused("its name is not the one that was signed: a replay under a new name")
    changes = message.proposed_file_changes
    if not 0 < len(changes) <= MAX_FILES:
        raise Refused(f"{len(changes)} files, allowed are 1 to {MAX_FILES}")
    jobs, files = set(), {}
    for change in changes:
        if change.datasite_email != owner:
            raise Refused(f"a file is meant for {change.datasite_email[:200]}, this is {owner}")
        job_name, path = _place(change.path_in_datasite.as_posix(), sender)
        jobs.add(job_name)
        if len(jobs) != 1:
            raise Refused("one message is one submission")
        if change.is_deleted or change.content is None or change.old_hash is not None or path in files:
            raise Refused(f"{path}: a submission only adds files, each once")
        content = content_bytes(change.content)
        if hashlib.sha256(content).hexdigest() != change.new_hash:
            raise Refused(f"{path}: content and hash differ")
        files[path] = content
    _check_whole(files)
    return Submission(sender, jobs.pop(), files)


def _place(path: str, sender: str) -> tuple[str, str]:
    """Return (job name, path within the job) of a path in the datasite."""
    prefix = f"app_data/job/inbox/{sender}/{PROTOCOL}/"
    job_name, _, rest = path[len(prefix) :].partition("/")
    if not path.startswith(prefix) or not rest:
        raise Refused(f"path {path[:200]}: {sender} may write to {prefix}<name>/ only")
    if not NAME.fullmatch(job_name):
        raise Refused(f"submission name {job_name[:100]!r}: only letters, digits, _ and -")
    parts = PurePosixPath(rest).parts
    proper = "/".join(parts) == rest and all(FILE_PART.fullmatch(part) for part in parts) and len(parts) <= MAX_DEPTH
    if not proper or not (rest in ("config.yaml", "run.sh") or (parts[0] == "code" and len(parts) > 1)):
        raise Refused(f"path {rest[:200]!r}: a submission holds config.yaml, run.sh and plain files under code/")
    if parts[-1].endswith("syft.pub.yaml"):
        raise Refused(f"path {rest}: a submission carries no permissions")
    return job_name, rest


def _check_whole(files: dict[str, bytes]) -> None:
    if "config.yaml" not in files or "run.sh" not in files or not any(path.startswith("code/") for path in files):
        raise Refused("incomplete: a submission holds config.yaml, run.sh and code/")
    folders = {parent.as_posix() for path in files for parent in PurePosixPath(path).parents}
    if clash := folders & set(files):
        raise Refused(f"{sorted(clash)[0]}: is a file and a folder at once")
    if sum(len(content) for path, content in files.items() if path != "config.yaml") > MAX_CODE_BYTES:
        raise Refused(f"more than {MAX_CODE_BYTES} bytes of code")
    read_table(files["config.yaml"], "config.yaml")  # nothing in it is used


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise Refused("aliases are not allowed")
        return super().compose_node(parent, index)


def read_table(data: bytes, name: str) -> dict[str, Any]:
    """Read a YAML file that another party wrote (`name` opens the error) as a table; raise `Refused`."""
    if len(data) > MAX_CONFIG_BYTES:
        raise Refused(f"{name} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        table = yaml.load(data, Loader=_PlainLoader)
    except Exception as error:  # of a value that does not fit its tag PyYAML raises whatever comes of it
        raise Refused(f"{name}: {error}") from error
    if not isinstance(table, dict):
        raise Refused(f"{name}: not a table")
    return table
