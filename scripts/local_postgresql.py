"""A real PostgreSQL server on loopback, for tests and shows: stopped, started again, with TLS or without.

PostgreSQL refuses to run as root, so a user who is root runs it as `postgres` or `nobody`. Its certificates are made
here, by a certificate authority of its own; `Certificates` also makes wrong ones on purpose.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from loopback_servers import Absent, free_port

USER, PASSWORD = "datasite", "Sec/ret@9"
#: How long a server may take to start or to stop.
START_SECONDS = 30.0


def _program(name: str) -> str:
    """Find a program of the server, newest version first where the distribution keeps them out of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    found = shutil.which(name) or next((str(path) for path in versions), None)
    if found is None:
        raise Absent("PostgreSQL's server is not installed; apt-get install postgresql")
    return os.path.realpath(found)


class _Owner(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _owner() -> _Owner:
    """Under whom the server runs: this user, or for root another one."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            known = pwd.getpwnam(name)
            return {"user": known.pw_uid, "group": known.pw_gid, "extra_groups": []}
    raise Absent("PostgreSQL does not run as root, and there is no user postgres or nobody")


@dataclass(frozen=True)
class Certificates:
    """A certificate authority and the key and certificate of a server that is called `host`."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, host: str = "localhost") -> Certificates:
        """Make all three in a new folder."""
        folder.mkdir(parents=True)
        authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Authority of {folder.name}")])
        authority = (
            _certificate(issuer, issuer, authority_key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(authority_key, hashes.SHA256())
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = (
            _certificate(subject, issuer, key)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        files = cls(folder / "authority.crt", folder / "server.crt", folder / "server.key")
        for path, one in ((files.authority, authority), (files.certificate, certificate)):
            path.write_bytes(one.public_bytes(serialization.Encoding.PEM))
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        files.key.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        return files


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
    )


class PostgreSQL:
    """One server, listening on loopback and on a socket in `folder`; `start` and `stop` as you like.

    With certificates it takes no connection without TLS but on that socket.
    The folder lies in the system's one for temporary files and not below a test's, whose parents are closed to the
    user that the server runs as.
    """

    def __init__(self, certificates: Certificates | None = None) -> None:
        folder = Path(tempfile.mkdtemp(prefix="datasites-postgresql-"))
        self.folder, self.port = folder, free_port()
        self._data, self._owner = folder / "data", _owner()
        self._process: subprocess.Popen[bytes] | None = None
        if self._owner:
            os.chown(folder, self._owner["user"], self._owner["group"])
        command = [_program("initdb"), "-D", str(self._data), "-U", USER, "-A", "scram-sha-256", "-E", "UTF8"]
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        done = subprocess.run(
            [*command, "--pwfile", str(password), "--no-sync"], capture_output=True, text=True, cwd="/", **self._owner
        )
        if done.returncode:
            raise RuntimeError(f"initdb: {done.stderr}")
        settings = ["listen_addresses = '127.0.0.1'", f"port = {self.port}", f"unix_socket_directories = '{folder}'"]
        if certificates is not None:
            for path, name in ((certificates.certificate, "server.crt"), (certificates.key, "server.key")):
                copy = self._data / name
                copy.write_bytes(path.read_bytes())
                copy.chmod(0o600)
                if self._owner:
                    os.chown(copy, self._owner["user"], self._owner["group"])
            settings += ["ssl = on"]
            access = self._data / "pg_hba.conf"
            access.write_text(re.sub("(?m)^host ", "hostssl ", access.read_text()))
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("\n".join(settings) + "\n")

    def address(self, database: str = "postgres", host: str = "127.0.0.1", options: str = "") -> str:
        """As `datasite.toml` has it; its password has characters that an address must escape."""
        query = f"?{options}" if options else ""
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@{host}:{self.port}/{database}{query}"

    def make_database(self, name: str) -> str:
        """Make a new empty database; return its address."""
        self.execute(f'create database "{name}"')
        return self.address(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement, and return its rows."""
        import psycopg

        with psycopg.connect(self.address(database), autocommit=True) as connection:
            done = connection.execute(statement)
            return list(done.fetchall()) if done.description else []

    def end_sessions(self, database: str) -> int:
        """End all sessions of a database, as a restart or a fail-over does; returns how many there were."""
        ended = self.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'")
        return len(ended)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        assert self._process is None
        self._process = subprocess.Popen(
            [_program("postgres"), "-D", str(self._data)],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
            cwd="/",
            **self._owner,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.execute("select 1")
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from error
                time.sleep(0.05)

    def stop(self, *, crash: bool = False) -> None:
        """Stop it at once and end its sessions; crash: without a check point, as when its machine fails."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            self._process.wait(START_SECONDS)
            self._process = None


@contextlib.contextmanager
def postgresql(certificates: Certificates | None = None) -> Iterator[PostgreSQL]:
    """Run a server until the block ends, and leave nothing behind; raise `Absent` where there is none to run."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise Absent(f"{error}; pip install 'datasites[postgresql]'") from error
    server = PostgreSQL(certificates)
    try:
        server.start()
        yield server
    finally:
        server.stop(crash=True)
        shutil.rmtree(server.folder, ignore_errors=True)
