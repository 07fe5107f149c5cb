"""The one tree of this project's errors; each message names the thing, the rule and the remedy.

Whether an error is ours, so that its message is meant for people, is decided by its type. Each has a `rule` that stays
the same when its message changes. The tree, with the module of each (`tests/test_house.py` holds it against the code):

  DatasitesError
    AlreadySent               transport.letter
    AnotherAtWork             hospital.cases.examination_lock
    AnswerRefused             hospital.data.answers
    AuditError                study.audit_chain
      AccountsDiffer          hospital.budget.reconcile
    BadBlob                   transport.blobs
    BadEnvelope               transport.letter
    BadFrame                  hospital.isolated.frames
    BadMock                   control.mocks
    BudgetExceeded            hospital.budget.ledger
    BudgetTooSmall            privacy.renyi
    CodeRefused               enclave.loader
    ControlError              control.syft
    DatabaseAway              hospital.database
    DatabaseRefused           hospital.database
    Denied                    hospital.cases.compliance
    DependentRows             privacy.probe
    EntryRefused              hospital.audit.entered
    EvaluationError           privacy.evaluation
    EvidenceError             hospital.evidence.bundle
    FrozenCopyChanged         hospital.cases.freeze
    IdentityError             study.identity
      BadSignature            study.identity
      WrongBundle             control.sealer
    Incomplete                researcher.federation
    InputError                study.errors
      ApartFailed             hospital.isolated.process
      Held                    study.holding
      NobodyToLeaveOut        hospital.cases.consent
      NotToUndo               hospital.data.withdrawal
      OtherSpellings          hospital.cases.consent
      SamePatients            hospital.data.patients
    MayNotRun                 hospital.cases.worker
    NotApproved               researcher.federation
    OtherKeys                 hospital.rounds.setup
      LostKeys                hospital.rounds.setup
    PersonError               hospital.people.accounts
      WrongPassword           hospital.people.accounts
    PlanError                 privacy.plan
    PolicyDenied              policies.engine
    ProtocolError             enclave.protocol
    Refused                   control.submissions
      Unopened                control.guards
    RegistryError             policies.agreements
    Rejected                  transport.letter
    ReviewError               hospital.people.accounts
    RingRefused               study.rounds
    RoundRefused              hospital.rounds.manifest
    RuleError                 policies.ruleset
    RunError                  aggregator.gather
      EpochRefused            aggregator.epochs
    SandboxUnavailable        enclave.sandbox
    SchemaError               study.schema
    SecaggError               secagg.errors
      AlreadyAnswered         secagg.errors
      AlreadyMasked           secagg.errors
      BadMessage              secagg.errors
      BadTerms                secagg.errors
      CommitmentsLost         secagg.errors
      Equivocation            secagg.errors
      JournalDamaged          secagg.errors
      JournalRolledBack       secagg.errors
      LateVector              secagg.errors
      NotASurvivor            secagg.errors
      OutOfOrder              secagg.errors
      RoundUsed               secagg.errors
      SpentState              secagg.errors
      TooFew                  secagg.errors
      UnknownParty            secagg.errors
      WrongShare              secagg.errors
    StoreError                transport.store_errors
      BadKey                  transport.store_errors
      NotAFile                transport.store_errors
      StoreDenied             transport.store_errors
      StoreFull               transport.store_errors
      StoreMissing            transport.store_errors
      StoreUnreachable        transport.store_errors
      TooLarge                transport.store_errors
    TemplateEnded             enclave.template
    TemplateError             policies.templates
    TrainingRefused           privacy.trainer
      StepsExhausted          privacy.trainer
    Undelivered               transport.letter
    UnknownEvent              privacy.events
    UnsupportedModel          privacy.records
    WorkerError               enclave.worker_client
      WorkerCrashed           enclave.worker_client
      WorkerOutOfMemory       enclave.worker_client
      WorkerRefused           enclave.worker_client
      WorkerTimeout           enclave.worker_client
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from datasites.study.addresses import is_address

Model = TypeVar("Model", bound=BaseModel)
#: Characters of what stood in a file that a message repeats.
_QUOTED = 200
#: Parts of a key (a.b.c) at most. Python's reader takes time and memory with their square: minutes for a small file.
_KEY_PARTS = 16
#: Comments and strings of several lines hold no key; what follows a string that does not end is nobody's TOML.
_TOKENS = re.compile(
    r"""(?P<none>\#[^\n]*|"{3}(?:\\[\s\S]|(?!"{3})[^\\])*"{3,5}|'{3}(?:(?!'{3})[\s\S])*'{3,5})|(?P<open>"{3}|'{3})
    |(?P<part>[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')|(?P<dot>\.)|(?P<blank>[ \t]+)
    |(?P<unended>["'])|.|\n""",
    re.VERBOSE,
)


class DatasitesError(Exception):
    """Root of all errors of ours: commands print them as one line, without a traceback.

    rule: what was broken, in words that stay the same whatever the message says; the class's name unless it gives one.
    """

    rule: str = "datasites-error"

    def __init_subclass__(cls, **options: object) -> None:
        """Name the rule by the class."""
        super().__init_subclass__(**options)
        if "rule" not in vars(cls):
            cls.rule = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


class InputError(DatasitesError, ValueError):
    """A file that a person wrote is not what it must be."""


def parse_toml(text: str | bytes, model: type[Model], file: str | Path) -> Model:
    """Read TOML into `model`; raises `InputError` with file, key and rule in one line.

    Types are exact: text is no number, true is no 1, and 15.0 is no count; a whole number may stand for a fraction, and
    a date for the text that it is written as. A byte order mark before it is left out.
    """
    try:
        text = (text.decode("utf-8") if isinstance(text, bytes) else text).removeprefix("\ufeff")
        if line := _line_of_long_key(text):
            raise InputError(f"{file}: line {line}: a key of more than {_KEY_PARTS} parts; no table is that deep")
        raw = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file}: not valid TOML: {error}; correct the line and try again") from error
    except InputError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise InputError(
            f"{file}: nested deeper, or with longer numbers, than a file that people write; write it shorter"
        ) from error
    try:
        # As JSON: strict rules for Python's own values know no list that stands for a tuple.
        plain = json.dumps(raw, default=str, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{file}: holds nan or inf; write a finite number") from error
    except RecursionError as error:
        raise InputError(f"{file}: nested deeper than a file that people write; nest it less deeply") from error
    try:
        return model.model_validate_json(plain, strict=True)
    except ValidationError as error:
        raise InputError(f"{file}: {describe_validation(error, model)}") from error


def _line_of_long_key(text: str) -> int:
    """Return the first line with a key of too many parts, 0 where there is none."""
    parts, joined = 0, False
    for found in _TOKENS.finditer(text):
        if found.lastgroup == "part":
            parts, joined = parts + 1 if joined else 1, False
            if parts > _KEY_PARTS:
                return text.count("\n", 0, found.start()) + 1
        elif found.lastgroup == "dot":
            joined = parts > 0
        elif found.lastgroup in ("open", "unended"):
            return 0
        elif found.lastgroup != "blank":
            parts, joined = 0, False
    return 0


def read_toml(path: Path, model: type[Model]) -> Model:
    """Return `parse_toml` of a file; a missing or unreadable one is an `InputError` too."""
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; write it or name another folder") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_toml(text, model, path)


def describe_validation(error: ValidationError, model: type[BaseModel] | None = None, *, quote: bool = True) -> str:
    """Describe the first fault of a validation: key, rule, and what stood there; then how many more there are.

    model: what was validated against, so that an unknown key can be told with the known ones. `quote=False` leaves out
    what stood there, which may be a secret.
    """
    faults = error.errors(include_url=False)
    # A key that nobody knows is often why another one is missing.
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    key = ".".join(str(part) for part in first["loc"]) or "the whole file"
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"]) if model else ()
        meant = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        rule = "no such key here; " + (f"did you mean {meant[0]}? " if meant else "take it out or correct its spelling")
        rule = f"{rule.strip()} (known: {', '.join(known)})" if known else rule
    elif first["type"] == "missing":
        rule = "is missing; add it"
    elif quote and isinstance(first["input"], str | int | float | bool) and not is_address(str(first["input"])):
        # An address may hold a secret: whoever refuses one says what of it may be shown.
        found = repr(first["input"])
        rule = f"{rule}, found {found if len(found) <= _QUOTED else found[:_QUOTED] + '...'}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{key}: {rule}{more}"


def _known_keys(model: type[BaseModel], place: Iterable[int | str]) -> tuple[str, ...]:
    """Return the keys known where an unknown one stood, sorted; none where several kinds of table may stand."""
    *path, _ = place
    for part in path:
        if isinstance(part, int):
            continue  # an element of a list: the list's annotation names what it holds
        field = model.model_fields.get(part)
        inner = [] if field is None else list(_models_in(field.annotation))
        if len(inner) != 1:
            return ()
        model = inner[0]
    return tuple(sorted(field.alias or name for name, field in model.model_fields.items()))


def _models_in(annotation: object) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
