"""`datasite.toml`: what a hospital sets for itself, and where everything lies in its home folder.

Read once at start; a frozen value. Nothing here comes from a study.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from datasites.enclave.sandbox import SandboxConfig
from datasites.hospital.dialect import Encoding, Separator
from datasites.hospital.postgresql import SCHEMES, PostgresAddress
from datasites.study.addresses import fault_of, hidden, shown
from datasites.study.canonical import Agreed
from datasites.study.errors import InputError, read_toml
from datasites.study.identity import Email
from datasites.study.manifest import LEAST_DELTA, LEAST_RATE, MOST_PATIENTS, Name
from datasites.transport.filesystems import check_address
from datasites.transport.store_errors import StoreError

CONFIG_FILE = "datasite.toml"


class DatasetSettings(Agreed):
    """One dataset that studies may ask for, with its mock and its privacy budget.

    `declared_patients` is a public figure that the steward answers for: it weighs this hospital in FedAvg and sizes
    batches, so that no count taken from the rows ever does. `declared_records` is one too: how many rows the table may
    come to hold (one per patient unless set); time is allowed for so many, and where there are more, how late releases
    leave tells of it. `population` says whose rows these are (the dataset's own
    patients unless set): budgets hold over all studies on a population, whatever its datasets are called.
    `held_out` is the share of patients that no study trains on and every study evaluates on; it and the salt of the
    split (drawn once, unless set here) are fixed with the first study, since budgets rest on that split.
    `separator` and `encoding` are those of a table of delimited text (see `delimited`); nothing is guessed from it.
    """

    name: Name
    table: str
    mapping: str
    mock: str
    summary: str
    declared_patients: Annotated[int, Field(ge=1, le=MOST_PATIENTS)]
    declared_records: Annotated[int, Field(ge=1, le=MOST_PATIENTS)]
    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(ge=LEAST_DELTA, lt=0.1)]
    study_epsilon: Annotated[float, Field(gt=0)]
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.4
    split_salt: Annotated[str, Field(pattern=r"^([0-9a-f]{32,})?$")] = ""
    min_patients: Annotated[int, Field(ge=1, le=MOST_PATIENTS)] = 1
    max_sampling_rate: Annotated[float, Field(ge=LEAST_RATE, le=1)] = 0.5
    population: Name = ""
    separator: Separator = ","
    encoding: Encoding = "utf-8"

    @model_validator(mode="before")
    @classmethod
    def _patients_of_its_own(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        return {"population": settings.get("name"), "declared_records": settings.get("declared_patients"), **settings}

    @model_validator(mode="after")
    def _a_record_for_each_patient(self) -> DatasetSettings:
        if self.declared_records < self.declared_patients:
            raise ValueError(
                f"declared_records: {self.declared_records} is less than declared_patients, {self.declared_patients}; "
                "each patient has a record, so declare as many at least"
            )
        return self

    def surplus_in_words(self, records: int) -> str:
        """Say what the hospital's own people should know where a table of so many records holds more than declared."""
        if records <= self.declared_records:
            return ""
        return (
            f"the table holds {records} records, more than declared_records = {self.declared_records}: rounds take "
            "longer than was allowed for, and the delay of releases reveals it; declare as many as it may ever "
            "hold"
        )


#: What datasets of one population say alike: it belongs to their patients.
OF_THE_POPULATION = ("epsilon", "delta", "held_out", "split_salt")


def _loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _https(url: str) -> str:
    if fault := fault_of(url):
        raise ValueError(f"{shown(url)} {fault}")
    parts = urlsplit(url)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and _loopback(url))):
        raise ValueError(f"{shown(url)} must be an https:// address (http:// only on this machine)")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError(f"{shown(url)} must hold no user, password or fragment; the client's secret is a file")
    if "?" in url:
        # What asks the provider writes its own options after a ? of its own.
        raise ValueError(
            f"{shown(url)} has an option (after the ?), and none is taken here; write the provider's address without "
            "one, as most offer it in their path"
        )
    return url


def _database(address: str) -> str:
    if address == "sqlite":
        return address
    if not address.startswith(SCHEMES):
        raise ValueError(f'{shown(address)} is neither "sqlite" nor postgresql://user:password@host:port/name')
    PostgresAddress.parse(address)
    return address


def _store(address: str) -> str:
    try:
        check_address(address)
    except StoreError as error:
        raise ValueError(str(error)) from error
    return address


ProviderUrl = Annotated[str, Field(max_length=500), AfterValidator(_https)]


class OidcSettings(Agreed):
    """`[console.oidc]`: the organisation's OpenID Connect provider, with which people sign in.

    Its addresses are what `<issuer>/.well-known/openid-configuration` says; they are kept here, and not asked for at
    each start, so that nobody can change them from outside (`datasites doctor` compares). The client's secret is a
    file below the home, readable for its owner only. `emails_are_verified = true` is for a provider that sends no
    `email_verified` and lets nobody choose their own address.
    """

    name: Annotated[str, Field(min_length=1, max_length=60)]
    issuer: ProviderUrl
    authorization_endpoint: ProviderUrl
    token_endpoint: ProviderUrl
    userinfo_endpoint: ProviderUrl
    jwks_uri: ProviderUrl
    client_id: Annotated[str, Field(min_length=1, max_length=200)]
    client_secret_file: Annotated[str, Field(min_length=1)] = "keys/oidc.secret"
    algorithm: Literal["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"] = "RS256"
    emails_are_verified: bool = False

    @property
    def service(self) -> str:
        """The provider for people."""
        return f"identity provider {self.name}"

    def hidden(self, text: str) -> str:
        """Return a library's text without what is secret in these addresses."""
        ends = (self.authorization_endpoint, self.token_endpoint, self.userinfo_endpoint, self.jwks_uri)
        for url in (self.issuer, *ends):
            text = hidden(text, url)
        return text


class ConsoleSettings(Agreed):
    """`[console]`: where the approval console listens, and what stands in front of it.

    It listens on this machine alone unless `host` says otherwise, and speaks plain HTTP: `https = true` says that a
    proxy in front speaks TLS, which makes cookies secure, sends HSTS and redirects plain requests. `trusted_proxy` is
    that proxy's address, the only one whose X-Forwarded-For and X-Forwarded-Proto are believed. `allowed_hosts` are
    the names under which people reach the console. Port 0 takes any free one; `run/ready.json` says which.
    `second_factor = "required"` demands a time-based code of everybody who signs in, or acts, with a password.
    """

    enabled: bool = True
    host: Annotated[str, Field(min_length=1, max_length=190)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8420
    allowed_hosts: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+$", max_length=190)], ...] = ()
    https: bool = False
    trusted_proxy: Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]*$", max_length=60)] = ""
    oidc: OidcSettings | None = None
    second_factor: Literal["optional", "required"] = "optional"

    @model_validator(mode="after")
    def _https_has_a_proxy(self) -> ConsoleSettings:
        if self.https and not self.trusted_proxy:
            raise ValueError(
                "https = true needs trusted_proxy, the address of the proxy that speaks TLS (127.0.0.1 on this machine)"
            )
        return self


class DatasiteSettings(Agreed):
    """The whole of `datasite.toml`. Addresses in it may hold secrets: `shown` says them to people.

    Submissions are rehearsed one after the other, between the rounds of running studies: each of a rehearsal's requests
    may take `rehearsal_seconds`, in which time of rounds doesn't count. A researcher may have
    `undecided_per_researcher` submissions waiting for people; further ones are refused. As root a datasite serves only
    with `run_as_root = true`: a worker then has user id 0, too, and the sandbox alone holds it.
    """

    organisation: Annotated[str, Field(min_length=1, max_length=120)]
    email: Email
    store: Annotated[str, AfterValidator(_store), Field(repr=False)]
    database: Annotated[str, AfterValidator(_database), Field(repr=False)] = "sqlite"
    control_seconds: Annotated[float, Field(gt=0)] = 2.0
    round_seconds: Annotated[float, Field(gt=0)] = 3600
    rehearsal_seconds: Annotated[float, Field(gt=0)] = 300
    undecided_per_researcher: Annotated[int, Field(ge=1)] = 10
    run_as_root: bool = False
    sandbox: SandboxConfig = SandboxConfig()
    console: ConsoleSettings = ConsoleSettings()
    datasets: tuple[DatasetSettings, ...] = ()

    @model_validator(mode="after")
    def _one_budget_for_a_population(self) -> DatasiteSettings:
        known: dict[str, DatasetSettings] = {}
        for dataset in self.datasets:
            first = known.setdefault(dataset.population, dataset)
            for name in OF_THE_POPULATION:
                if getattr(first, name) != getattr(dataset, name):
                    raise ValueError(
                        f"datasets {first.name} and {dataset.name} are of population {dataset.population}, whose "
                        f"patients have one budget and one split; give both the same {name}"
                    )
        return self


@dataclass(frozen=True)
class Home:
    """Paths inside a datasite's home folder, and its settings."""

    root: Path
    settings: DatasiteSettings

    @classmethod
    def open(cls, root: Path) -> Home:
        """Read the settings of an initialised home; raises `InputError`."""
        root = root.resolve()
        if not (root / CONFIG_FILE).is_file():
            raise InputError(f"{root}: holds no {CONFIG_FILE}; run `datasites init` there or name another --home")
        return cls(root, read_toml(root / CONFIG_FILE, DatasiteSettings))

    def dataset(self, name: str) -> DatasetSettings:
        """Return the settings of dataset `name`; raises `InputError`."""
        for dataset in self.settings.datasets:
            if dataset.name == name:
                return dataset
        known = ", ".join(dataset.name for dataset in self.settings.datasets) or "none"
        raise InputError(f"dataset {name!r}: not in {CONFIG_FILE} (known: {known}); add a [[datasets]] entry")

    @property
    def key(self) -> Path:
        """Institution key."""
        return self.root / "keys" / "institution.pem"

    @property
    def commitment_key(self) -> Path:
        """Key of the commitments to records (see `hospital.audit.commitments`)."""
        return self.root / "keys" / "commitment.key"

    @property
    def figures(self) -> Path:
        """Prices that were worked out (private; see `hospital.budget.price_cache`)."""
        return self.root / "figures"

    @property
    def roster(self) -> Path:
        """Pinned roster."""
        return self.root / "roster.json"

    @property
    def roster_entry(self) -> Path:
        """This hospital's own entry, for the other parties."""
        return self.root / "roster-entry.json"

    @property
    def registry(self) -> Path:
        """Agreements in force."""
        return self.root / "registry.json"

    @property
    def bindings(self) -> Path:
        """What opens the audit log's commitments to what people entered (private; see `hospital.audit.bindings`)."""
        return self.root / "bindings"

    @property
    def local_rules(self) -> Path:
        """The hospital's own Cedar rules."""
        return self.root / "policies"

    @property
    def database(self) -> Path:
        """SQLite file, when the database is SQLite."""
        return self.root / "datasite.sqlite3"

    @property
    def audit(self) -> Path:
        """Audit chain."""
        return self.root / "audit.jsonl"

    @property
    def frozen(self) -> Path:
        """Frozen copies of submitted code, by study hash."""
        return self.root / "frozen"

    @property
    def prepared(self) -> Path:
        """Encoded tables (private)."""
        return self.root / "prepared"

    @property
    def withdrawals(self) -> Path:
        """Pseudonyms of patients who have withdrawn their consent, by population (private)."""
        return self.root / "withdrawals"

    @property
    def identities(self) -> Path:
        """Keyed digests of the patients whose records were prepared, by population (private)."""
        return self.root / "identities"

    @property
    def secagg(self) -> Path:
        """Secure-aggregation state and journals, by study hash (private)."""
        return self.root / "secagg"

    @property
    def anchors(self) -> Path:
        """Anchors of the secure-aggregation journals; keep this folder out of every backup (see `secagg.journal`)."""
        return self.root / "anchors"

    @property
    def ledger_anchor(self) -> Path:
        """What the audit log said of budgets last (see `hospital.budget.ledger_log`); beside the other anchors."""
        return self.anchors / "ledger"

    @property
    def unknown_heads(self) -> Path:
        """Heads that others hold and that this hospital's log lacks, until two people have settled what was lost."""
        return self.root / "heads-not-in-log.json"

    @property
    def fork(self) -> Path:
        """What other parties are told of the last restore (see `study.audit_chain.Fork`)."""
        return self.root / "fork.json"

    @property
    def ledger_pending(self) -> Path:
        """Lines of the ledger that are being put into audit log and database."""
        return self.root / "pending"

    @property
    def syftbox(self) -> Path:
        """The SyftBox: mock data and pointer files only."""
        return self.root / "syftbox"

    @property
    def transport(self) -> Path:
        """State of syft's connection and of the mailroom."""
        return self.root / "transport"

    @property
    def run(self) -> Path:
        """Lock and readiness of the running service."""
        return self.root / "run"

    @property
    def ready(self) -> Path:
        """Who serves, and where its console is; there as long as it does."""
        return self.run / "ready.json"
