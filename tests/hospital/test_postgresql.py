"""A real PostgreSQL server under a real datasite: TLS as the address asks for, and sessions that end at any moment."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from local_postgresql import Certificates, PostgreSQL, postgresql
from loopback_servers import Absent, free_port

from datasites.study.audit_chain import verify_log
from datasites.study.roster import Roster

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def running(certificates: Certificates | None = None) -> Iterator[PostgreSQL]:
    try:
        with postgresql(certificates) as server:
            yield server
    except Absent as absent:
        pytest.skip(str(absent))


def datasites(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "datasites.cli", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


def init(folder: Path, database: str, *lines: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    toml = [
        'organisation = "A"',
        "run_as_root = true",
        'email = "a@a.example.org"',
        f'store = "{folder}/store"',
        f'database = "{database}"',
    ]
    (folder / "datasite.toml").write_text("\n".join([*toml, "[console]", *lines]) + "\n")
    return datasites("init", folder / "datasite.toml", "--home", folder / "home")


def tables(server: PostgreSQL, database: str) -> int:
    count = server.execute("select count(*) from pg_tables where schemaname = 'public'", database)[0][0]
    assert isinstance(count, int)
    return count


@pytest.mark.slow
def test_tls_is_what_the_address_asks_for_or_nothing_is_made(tmp_path: Path) -> None:
    """The right authority and name: TLS, and `doctor` says so. Another authority, name or no TLS: no table is made."""
    own = Certificates.make(tmp_path / "own")
    Certificates.make(tmp_path / "other")
    verify_log = f"sslmode=verify-full&sslrootcert={own.authority}"
    with running(own) as server, running() as plain:
        refused = {
            "certificate verify failed": server.address("other", "localhost", verify_log.replace("/own/", "/other/")),
            "does not match host name": server.address("name", "127.0.0.1", verify_log),
            "does not support SSL": plain.address("none", "localhost", verify_log),
            "does not exist": server.address("file", "localhost", verify_log.replace("authority.crt", "absent.crt")),
        }
        for words, address in refused.items():
            name = address.partition("?")[0].rpartition("/")[2]
            where = plain if name == "none" else server
            where.make_database(name)
            done = init(tmp_path / f"at-{name}", address)
            assert done.returncode == 2
            assert words in done.stderr
            assert len(done.stderr.splitlines()) == 1
            assert "Sec" not in done.stderr
            assert tables(where, name) == 0
        server.make_database("good")
        done = init(tmp_path / "at-good", server.address("good", "localhost", verify_log))
        assert done.returncode == 0, done.stderr
        assert tables(server, "good") > 20
        said = next(line for line in datasites("doctor", "--home", tmp_path / "at-good/home").stdout.splitlines()
                    if " database:" in line)  # fmt: skip
        assert said.startswith("ok")
        for words in ("TLSv1.", "sslmode=verify-full", f"sslrootcert={own.authority}", "datasite:***@localhost"):
            assert words in said
        assert "Sec" not in said
        plain.make_database("open")
        init(tmp_path / "at-open", plain.address("open"))
        assert "without TLS" in datasites("doctor", "--home", tmp_path / "at-open/home").stdout
        socket = plain.address("open", "", f"host={plain.folder}")
        (tmp_path / "at-open/home/datasite.toml").write_text(
            (tmp_path / "at-open/datasite.toml").read_text().replace(plain.address("open"), socket)
        )
        assert f"host={plain.folder}" in datasites("doctor", "--home", tmp_path / "at-open/home").stdout


@pytest.mark.slow
def test_a_server_that_restarts_is_waited_out_at_start_and_later(tmp_path: Path) -> None:
    """The service and its console: a sentence in the log and 503 meanwhile, and both go on by themselves."""
    port = free_port()
    with running() as server:
        assert init(tmp_path / "at", server.make_database("ds"), f"port = {port}").returncode == 0
        server.stop()
        home, log = tmp_path / "at/home", tmp_path / "log"
        service = subprocess.Popen(
            [sys.executable, "-m", "datasites.cli", "serve", "--home", str(home)], stderr=log.open("w"), cwd=ROOT
        )

        def until(words: str, times: int = 1) -> None:
            deadline = time.monotonic() + 60
            while log.read_text().count(words) < times:
                assert service.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)

        said: list[str] = []
        #: The service's own line; the console's, of a page that it could not show, says nothing of waiting.
        waiting = "waiting, tried again every 2 s"

        def answer() -> int:
            try:
                # Of somebody who has signed in, or says so: that is looked up.
                cookie = f"datasite-{hashlib.sha256(b'a@a.example.org').hexdigest()[:8]}={'x' * 32}"
                request = urllib.request.Request(f"http://127.0.0.1:{port}/login/", headers={"Cookie": cookie})
                with urllib.request.urlopen(request) as page:
                    return int(page.status)
            except urllib.error.HTTPError as error:
                said.append(error.read().decode())
                return error.code

        try:
            until(waiting)
            server.start()
            until("ready: ")
            assert answer() == 200
            assert server.end_sessions("ds") >= 1
            assert answer() == 200
            for crash in (False, True):
                server.stop(crash=crash)
                until(waiting, 2 + crash)
                assert answer() == 503
                server.start()
                until("is back after", 2 + crash)
                assert answer() == 200
            assert ["database is unavailable" in words for words in said] == [True, True]
            text = log.read_text()
            assert "Traceback" not in text
            assert "Sec" not in text
            service.send_signal(signal.SIGTERM)
            assert service.wait(30) == 0
        finally:
            service.kill()
    report = verify_log(home / "audit.jsonl", Roster.load(home / "roster.json").get("a@a.example.org").public_key)
    assert report.ok, report


@pytest.mark.long
def test_sessions_that_end_at_any_query_of_a_round_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """`test_outages` once more, where the server really ends sessions: before a query, after it, after a commit."""
    with running() as server:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not long", "tests/hospital/test_outages.py"]
        done = subprocess.run(
            command,
            env={**os.environ, "DATASITES_TEST_DATABASE": server.make_database("tests")},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        assert "skipped" not in done.stdout
