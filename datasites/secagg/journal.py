"""The hospital's journal of one study on disk: the member's state, and every message, to be sent again byte for byte.

One commit makes the new state and its messages durable *before* they are sent, in one atomic step: wherever the process
is killed, a release is either not made or made once (I6). The files (mode 0600), in a folder of the caller's, are those
of `layout`, and `lock` (one process only). A commit writes what is new, then the record that names it, then removes
what no record names any more: secrets that the step destroyed are in no file when it has returned. What a crash has
left unfinished is removed when the journal is opened.

How a restored backup is noticed: the **anchor**, a small file outside the folder that the caller keeps out of every
backup, holds the sequence and head of the newest commit. A record that is neither that nor the one commit under way is
refused with `JournalRolledBack`. What this can't see: anchor and folder set back *together* (a whole-machine snapshot).
For that case each release carries a signed journal mark which the aggregator shows again in the next manifest, and
`Member.open` refuses a mark that it does not know; an aggregator that is malicious *as well* can prevent that, so
exclude the anchor from snapshots, or put it on another machine's disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from datasites.secagg.errors import REJOIN, JournalDamaged, JournalRolledBack, SpentState
from datasites.secagg.layout import JournalledMessage, Layout, lay_out, read
from datasites.secagg.messages import MaskedVector, Message, Ready
from datasites.secagg.state import MemberState, Released
from datasites.study.canonical import Agreed, sha256_hex
from datasites.study.files import append_durably, open_lock, replace_durably, taken, write_durably

#: The floor of a journal that has never reached an epoch or a round.
NOTHING_REACHED = (-1, 0)


class Anchor(Agreed):
    """The newest commit, the one under way, and the floor: epoch and round that were ever reached."""

    format: Literal[1] = 1
    committed: Released | None = None
    intended: Released | None = None
    epoch: int = -1
    last_round: int = 0


class Journal:
    """A journal that this process has to itself until `close`; use it in a `with` block."""

    def __init__(self, folder: Path, anchor: Path) -> None:
        """Open or begin the journal in `folder`.

        Raises `JournalRolledBack` or `JournalDamaged` if record and anchor don't fit together, `SpentState` if another
        process has it open. Nothing may be released then; `start_over` is the way back into a new epoch.
        """
        self._folder, self._anchor_path = folder, anchor
        self._parts = folder / "parts"
        self._parts.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _locked(folder)
        try:
            self._anchor, self._layout = self._read()
            self._clean()
            self._unclean = False
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process open the journal."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def state(self) -> MemberState | None:
        """Return the newest committed state; None before the first commit."""
        return self._layout.state if self._layout else None

    @property
    def floor(self) -> tuple[int, int]:
        """Return the highest epoch and round that this hospital ever reached in the study; (-1, 0) before the first."""
        return self._anchor.epoch, self._anchor.last_round

    def commit(self, state: MemberState, *messages: Message | MaskedVector) -> None:
        """Make `state` and the messages that came with it durable; send them only after this has returned.

        `state` must be one step on from the committed one (or the same, with messages to keep); else `SpentState`, as
        for a first state below the floor.
        """
        self._check_follows(state)
        if self._unclean:
            self._finish()
        fresh: list[JournalledMessage] = []
        data: dict[str, bytes | memoryview] = {}

        def keep(kind: str, recipient: str, content: bytes | memoryview, digest: str) -> None:
            data[digest] = content
            fresh.append(JournalledMessage(kind=kind, recipient=recipient, sha256=digest))

        for message in messages:
            if isinstance(message, MaskedVector):
                keep("payload", "", message.payload, message.header.payload)
                message = message.header
            content = message.to_bytes()
            keep(message.kind, getattr(message, "recipient", ""), content, sha256_hex(content))
        before = self._layout
        change = lay_out(state, (*self._still_wanted(state, fresh), *fresh), before)
        there = before.parts if before is not None else set()
        # Whatever fails from here on (a full disk), what it leaves is removed before the next step.
        self._unclean = True
        write_durably(self._parts, {name: one for name, one in (data | change.parts).items() if name not in there})
        for name, (start, entries) in change.entries.items():
            append_durably(self._folder / name, start, entries)
        point = Released(sequence=state.sequence, head=state.head)
        # The anchor says first what is about to become true, so that a crash here is told from a restored backup.
        self._write_anchor(self._anchor.model_copy(update={"intended": point}))
        record, wanted = self._folder / "record", change.layout.record.canonical()
        try:
            replace_durably(record, wanted)
        finally:
            # It may be in its place although this failed (where the folder could not be synchronised).
            if record.exists() and record.read_bytes() == wanted:
                self._layout = change.layout
        self._settle(state, point)
        self._remove_what_is_over(before, change.layout)
        self._unclean = False

    def sent(self, kind: type[Message], recipient: str | None = None) -> bytes | None:
        """Return the committed bytes of this epoch's (or open round's) newest message of a kind, to send again.

        `recipient` chooses among messages of one kind to several (share bundles); None where there is one only.
        """
        return self._find(kind.kind, recipient)

    def masked(self) -> MaskedVector | None:
        """Return the open round's masked vector as it was committed, to send again; None if there is none."""
        state = self.state
        if state is None or state.open is None or state.open.header is None:
            return None
        payload = self._find("payload", None)
        if payload is None:
            raise JournalDamaged("journal: the masked payload is missing; this hospital sits this round out")
        masked = MaskedVector(state.open.header, payload)
        masked.check_payload()
        return masked

    @classmethod
    def start_over(cls, folder: Path, anchor: Path) -> None:
        """Destroy the record, its secrets and messages after `JournalRolledBack`; the floor in the anchor stays.

        The study goes on in a new epoch, above the floor, once all hospitals set one up. If the anchor is lost too, the
        floor is unknown: agree with the aggregator on a first round that is later than any that was ever opened.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _locked(folder)
        try:
            try:
                old = Anchor.parse(anchor.read_bytes())
            except (FileNotFoundError, ValueError):
                old = Anchor()
            # The record last: as long as it is there, whoever is to destroy the secrets knows that some may be left.
            for path in folder.rglob("*"):
                if path.is_file() and path not in (folder / "lock", folder / "record"):
                    path.unlink()
            (folder / "record").unlink(missing_ok=True)
            replace_durably(anchor, Anchor(epoch=old.epoch, last_round=old.last_round).canonical())
        finally:
            os.close(lock)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _read(self) -> tuple[Anchor, Layout | None]:
        layout = read(self._folder)
        state = None if layout is None else layout.state
        try:
            anchor = Anchor.parse(self._anchor_path.read_bytes())
        except FileNotFoundError:
            if state is not None:
                raise JournalRolledBack(
                    f"{self._anchor_path}: the anchor is missing, so the journal can't be told from a restored backup; "
                    f"release nothing; {REJOIN}"
                ) from None
            return Anchor(), None
        except ValueError:
            raise JournalDamaged(f"{self._anchor_path}: not an anchor; {REJOIN}") from None
        point = None if state is None else Released(sequence=state.sequence, head=state.head)
        if point != anchor.committed and (anchor.intended is None or point != anchor.intended):
            at = 0 if point is None else point.sequence
            newest = 0 if anchor.committed is None else anchor.committed.sequence
            raise JournalRolledBack(
                f"{self._folder}: the journal stands at {at}, the anchor at {newest}: restored from a backup or "
                f"copied. Release nothing; {REJOIN}"
            )
        if anchor.intended is not None:
            self._anchor = anchor
            if state is not None and point is not None:
                self._settle(state, point)
            else:
                self._write_anchor(anchor.model_copy(update={"intended": None}))
            anchor = self._anchor
        return anchor, layout

    def _check_follows(self, state: MemberState) -> None:
        if self._lock < 0:
            raise SpentState("journal: closed; open it again")
        old = self.state
        if old is None:
            first = state.secrets[0].round if state.secrets else 0
            epoch, last_round = self.floor
            if state.epoch <= epoch or first <= last_round:
                raise SpentState(
                    f"journal: epoch {epoch} and round {last_round} were reached; the next epoch must be {epoch + 1} "
                    f"or later, from round {last_round + 1} or later"
                )
            return
        if state != old and (state.sequence, state.parent) != (old.sequence + 1, old.head):
            raise SpentState(
                f"journal: stands at {old.sequence}, and the state to commit (at {state.sequence}) is not one step on "
                "from there; commit after every step, and start each from `journal.state`"
            )

    def _still_wanted(self, state: MemberState, fresh: list[JournalledMessage]) -> list[JournalledMessage]:
        old = self._layout
        if old is None or old.state.epoch != state.epoch:
            return []
        replaced = {(one.kind, one.recipient) for one in fresh}
        kept = [one for one in old.sent if (one.kind, one.recipient) not in replaced]
        if old.state.last_round != state.last_round:
            # Of an earlier round nothing is sent again, and no peer takes a bundle once rounds run. The aggregator may
            # ask for the commitments again, to find out whose shares are wrong.
            kept = [one for one in kept if one.kind == Ready.kind]
        return kept

    def _find(self, kind: str, recipient: str | None) -> bytes | None:
        if self._layout is None:
            return None
        for one in self._layout.sent:
            if one.kind == kind and recipient in (None, one.recipient):
                try:
                    return (self._parts / one.sha256).read_bytes()
                except FileNotFoundError as error:
                    raise JournalDamaged(f"journal: the {kind} message is missing from {self._parts}") from error
        return None

    def _remove_what_is_over(self, before: Layout | None, now: Layout) -> None:
        if before is None:
            return
        for name in before.parts - now.parts:
            (self._parts / name).unlink(missing_ok=True)
        for name in before.growing.keys() - now.growing.keys():
            (self._folder / name).unlink(missing_ok=True)

    def _finish(self) -> None:
        """Do what a step that failed has left undone: were its point not settled, the next one's would displace it."""
        if self._layout is not None and self._anchor.intended is not None:
            state = self._layout.state
            self._settle(state, Released(sequence=state.sequence, head=state.head))
        self._clean()

    def _clean(self) -> None:
        """Remove what a step that was killed has left: files that it made too early, or did not remove any more."""
        wanted = {self._folder / "lock", self._folder / "record"}
        if self._layout is not None:
            wanted |= {self._parts / name for name in self._layout.parts}
            wanted |= {self._folder / name for name in self._layout.growing}
        for path in self._folder.rglob("*"):
            if path.is_file() and path not in wanted:
                path.unlink()

    def _settle(self, state: MemberState, point: Released) -> None:
        self._write_anchor(
            Anchor(
                committed=point,
                epoch=max(self._anchor.epoch, state.epoch),
                last_round=max(self._anchor.last_round, state.last_round),
            )
        )

    def _write_anchor(self, anchor: Anchor) -> None:
        replace_durably(self._anchor_path, anchor.canonical())
        self._anchor = anchor


def _locked(folder: Path) -> int:
    descriptor = open_lock(folder / "lock")
    if not taken(descriptor):
        os.close(descriptor)
        raise SpentState(f"{folder}: another process has this journal open; stop it first")
    return descriptor
