"""The console as it is served: beside the datasite, on its port or not at all, with cookies as its settings say."""

from __future__ import annotations

import builtins
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from datasites.hospital.config import ConsoleSettings, Home
from datasites.hospital.console.server import serving
from datasites.study.errors import InputError


@pytest.mark.waits
def test_it_serves_pages_and_files_and_stops(furnished: Home) -> None:
    with serving(ConsoleSettings(port=0)) as address:
        page = urllib.request.urlopen(address + "login/")
        assert page.status == 200
        assert "Server" not in page.headers
        for name in ("console/console.css", "console/icon.svg", "django_htmx/htmx-2.min.js"):
            assert urllib.request.urlopen(f"{address}static/{name}").status == 200
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=2)
    assert not [thread for thread in threading.enumerate() if thread.name == "console"]


@pytest.mark.waits
def test_a_port_in_use_is_said_and_nothing_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}.*--no-console"), serving(ConsoleSettings(port=port)):
            pass
    assert not [thread for thread in threading.enumerate() if thread.name == "console"]


def test_it_can_be_switched_off() -> None:
    with serving(ConsoleSettings(enabled=False, port=1)) as address:
        assert address == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [("port = 70000", "port"), ("https = true", "trusted_proxy"), ("color = 1", "no such key"), ('host = ""', "host")],
)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, line: str, words: str) -> None:
    settings = 'organisation = "A"\nemail = "a@a.example.org"\nstore = "s"\n[console]\n'
    (tmp_path / "datasite.toml").write_text(settings + line)
    with pytest.raises(InputError, match=words):
        Home.open(tmp_path)


def test_a_kill_while_the_key_is_made_leaves_a_whole_one_or_none(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty one, no console would ever start. (Private: settings are made once a process, at import.)"""
    from datasites.hospital import settings

    key = home.root / "keys" / "django.key"
    before = key.read_bytes()
    key.unlink()
    try:
        child = os.fork()
        if child == 0:
            for owner, name in ((builtins, "open"), (os, "fdopen")):
                monkeypatch.setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
            settings._secret_key()
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert len(settings._secret_key()) >= 50
    finally:
        key.write_bytes(before)


PROBE = """
import sys
from pathlib import Path
from datasites.hospital.database import connect
connect(Path(sys.argv[1]))
from django.core.management import call_command
from django.conf import settings
call_command("check", deploy=True, fail_level="WARNING")
assert settings.SESSION_COOKIE_SECURE and settings.CSRF_COOKIE_SECURE and settings.SECURE_HSTS_SECONDS
assert settings.SESSION_COOKIE_NAME.startswith("__Host-") and settings.SESSION_COOKIE_HTTPONLY
call_command("makemigrations", check=True, dry_run=True)
"""


@pytest.mark.slow
def test_behind_a_proxy_the_deployment_check_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "datasite.toml").write_text(
        'organisation = "A"\nemail = "a@a.example.org"\nstore = "s"\n'
        '[console]\nhttps = true\ntrusted_proxy = "127.0.0.1"\nallowed_hosts = ["datasite.a.example.org"]\n'
    )
    done = subprocess.run([sys.executable, "-c", PROBE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues" in done.stdout


@pytest.mark.slow
@pytest.mark.waits
def test_init_shows_the_first_admins_invitation_once(tmp_path: Path) -> None:
    import re

    settings = tmp_path / "datasite.toml"
    settings.write_text(f'organisation = "A"\nemail = "a@a.example.org"\nstore = "{tmp_path / "store"}"\n')
    home = tmp_path / "home"
    command = [sys.executable, "-m", "datasites.cli"]
    done = subprocess.run([*command, "init", str(settings), "--home", str(home)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = re.search(r"^http://127\.0\.0\.1:8420/invitation/#(\S+)$", done.stdout, re.MULTILINE)
    assert shown is not None
    assert len(shown[1]) >= 32
    for file in home.rglob("*"):
        assert not file.is_file() or shown[1].encode() not in file.read_bytes(), file
    password, at = "a phrase of the admin's own", ["--password-stdin", "--home", str(home)]
    done = subprocess.run(
        [*command, "person", "accept", *at], input=f"{shown[0]}\n{password}\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    arguments = ["kill", "--as", "admin", "--reason", "drill", "--yes", *at]
    done = subprocess.run([*command, *arguments], input=password + "\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (home / "KILLED").exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with (home / "datasite.toml").open("a") as file:
            file.write(f"[console]\nport = {taken.getsockname()[1]}\n")
        done = subprocess.run([*command, "serve", "--home", str(home)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (home / "run" / "ready.json").exists()
