"""What a run has done so far, kept on disk so that a crash costs at most the step that it interrupted.

`run.json` names the model file of the newest finished round; both are replaced atomically, the model first. A file that
is not as a run saves it raises `RunError`, with its name and what to do.
"""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from datasites.aggregator.gather import RunError
from datasites.study.audit_chain import Fork, PublicHead
from datasites.study.canonical import Agreed, canonical_json
from datasites.study.errors import describe_validation
from datasites.study.files import replace_durably
from datasites.study.holding import Hold, hold
from datasites.study.identity import Email
from datasites.study.letters import PrivacyStatement
from datasites.study.manifest import RoundManifest, Sha256
from datasites.study.tensors import Parameter

RUN_FILE = "run.json"
_PARAMETERS = TypeAdapter(tuple[Parameter, ...])
#: What to do about a file of a run that can still tell hospitals of the end.
_BACKUP = "restore it from a backup, or end the study with `close`; no round can run without it"


class RoundRecord(Agreed):
    """One round as the aggregator saw it. Counts are sums over survivors with noise of sd `counts_sigma` in all.

    outcome: "done"; or "failed" when too few hospitals answered, with the reason. abstained: controls that denied, by
    hospital; an empty list is a failure that the hospital does not explain. sent: bytes of each hospital's vector.
    blamed: hospitals whose wrong shares kept the sum shut; they take part in no later round. heads: of all whose vector
    came, in failed rounds too.
    """

    round: int
    epoch: int
    train: bool
    evaluate: Literal["no", "interim", "final"]
    participants: tuple[Email, ...]
    survivors: tuple[Email, ...] = ()
    abstained: dict[str, tuple[str, ...]] = {}
    outcome: Literal["done", "failed"] = "done"
    reason: str = ""
    refused: tuple[str, ...] = ()
    blamed: tuple[Email, ...] = ()
    update_norm: float | None = None
    counts: tuple[tuple[float, float], ...] | None = None
    counts_sigma: float = 0.0
    sent: dict[str, int] = {}
    seconds: dict[str, float] = {}
    heads: dict[str, PublicHead] = {}

    @classmethod
    def begun(cls, manifest: RoundManifest) -> Self:
        """Make the record of a round of which only the manifest is known."""
        return cls(
            round=manifest.round,
            epoch=manifest.epoch,
            train=manifest.train,
            evaluate=manifest.evaluate,
            participants=manifest.participants,
        )


class Clock:
    """Seconds by phase, for `RoundRecord.seconds`."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Name the phase that ends now."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 4)
        self._last = now


class DeclaredFork(Agreed):
    """A restore of a hospital's audit log, as it declared it, and the round in which it first did."""

    fork: Fork
    round: Annotated[int, Field(ge=1)]


class RunState(Agreed):
    """Where a run stands. `present` are the hospitals that answered last; only they are waited for.

    epochs_for: epochs of the secure sum that were begun to let that hospital in. forks: restores of a hospital's audit
    log from a backup, as it declared them to this run. closed: no round follows; hospitals are told so, and `accounts`
    are what they answered.
    """

    format: Literal[1] = 1
    study: Sha256
    epoch: Annotated[int, Field(ge=-1)] = -1
    next_round: Annotated[int, Field(ge=1)] = 1
    present: tuple[Email, ...] = ()
    epochs_for: dict[str, int] = {}
    setup_seconds: float = 0.0
    rounds: tuple[RoundRecord, ...] = ()
    forks: dict[Email, tuple[DeclaredFork, ...]] = {}
    accounts: dict[str, PrivacyStatement] = {}
    closed: bool = False

    @property
    def blamed(self) -> frozenset[str]:
        """Return hospitals that take part in no further round, since their wrong shares kept a sum shut."""
        return frozenset(email for round_record in self.rounds for email in round_record.blamed)


class RunFolder:
    """The files of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def hold(self) -> Hold:
        """Take the folder, for whatever writes into it; raises `Held` where somebody does already."""
        return hold(self.folder / "lock", f"{self.folder}: this run is open already", "wait for it, or stop it there")

    def load(self, study_hash: str) -> RunState:
        """Return the state as last saved, or a new one."""
        stored = self.read(RUN_FILE)
        if stored is None:
            return RunState(study=study_hash)
        remedy = "restore it from a backup, or move it away and end the study with `Federation.end`"
        with self._as_saved(RUN_FILE, f"{remedy}, for no round goes on without it"):
            state = RunState.parse(stored)
            if state.study != study_hash:
                raise ValueError(f"it is of study {state.study[:16]}, and this one is {study_hash[:16]}")
            return state

    @contextmanager
    def _as_saved(self, name: str, remedy: str = _BACKUP) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            why = describe_validation(error) if isinstance(error, ValidationError) else error or type(error).__name__
            raise RunError(f"{self.folder / name}: not as a run saves it: {why}; {remedy}") from error

    def save(self, state: RunState) -> None:
        """Replace `run.json`."""
        self.write(RUN_FILE, state.canonical())

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Replace a file atomically; it is on the disk when this returns."""
        replace_durably(self.folder / name, data, mode=0o666)

    def remove_but(self, keep: str, pattern: str) -> None:
        """Remove the files that match `pattern`, but not `keep`."""
        for path in self.folder.glob(pattern):
            if path.name != keep:
                path.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None when there is no file."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def save_parameters(self, parameters: tuple[Parameter, ...]) -> None:
        """Save the model's tensors, in their order."""
        self.write("parameters.json", canonical_json([one.model_dump(mode="json") for one in parameters]))

    def load_parameters(self) -> tuple[Parameter, ...]:
        """Load the model's tensors, in their order."""
        with self._as_saved("parameters.json"):
            stored = self.read("parameters.json")
            if stored is None:
                raise ValueError("it is missing")
            return _PARAMETERS.validate_json(stored)

    def save_model(
        self, round: int, model: npt.NDArray[np.float32], strategy: dict[str, npt.NDArray[np.float64]]
    ) -> None:
        """Save the model that `round` starts from, shape (d,), with the strategy's state."""
        content = io.BytesIO()
        np.savez(content, model=model, **{f"strategy.{name}": value for name, value in strategy.items()})  # type: ignore[arg-type]
        self.write(self._model(round).name, content.getbuffer())
        for old in self.folder.glob("model-*.npz"):
            if int(old.stem.split("-")[1]) < round - 1:
                old.unlink()

    def has_model(self, round: int) -> bool:
        """Return whether there is a file of the model that `round` starts from."""
        return self._model(round).exists()

    def load_model(self, round: int) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float64]]]:
        """Load the model that `round` starts from, shape (d,), with the strategy's state."""
        path = self._model(round)
        with self._as_saved(path.name):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                raise ValueError("it is missing") from None
            with file:  # numpy would leave a damaged one open
                stored = np.load(file, allow_pickle=False)
                if not isinstance(stored, np.lib.npyio.NpzFile):
                    raise ValueError("it is no archive of arrays")
                arrays = {name: stored[name] for name in stored.files}
            model = arrays.pop("model")
            if model.dtype != np.float32 or model.ndim != 1:
                raise ValueError(f"its model is {model.dtype} of shape {model.shape}")
            return model, {name.removeprefix("strategy."): value for name, value in arrays.items()}

    def _model(self, round: int) -> Path:
        return self.folder / f"model-{round:06d}.npz"


class Progress:
    """How far a run has come: its state as it was last saved, and its files."""

    def __init__(self, files: RunFolder, study_hash: str) -> None:
        self.files = files
        self.state = files.load(study_hash)

    def save(self, **changes: object) -> None:
        """Go on to this state; where it can't be written, the last one stays."""
        state = self.state.model_copy(update=changes)
        self.files.save(state)
        self.state = state
