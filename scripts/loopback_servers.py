"""Real storage servers on loopback, for tests and for the demo: S3 (moto), OpenSSH's SFTP, WebDAV (wsgidav).

Each is a context manager that yields (url, options) for `Store`. `Absent` says what to install where one is missing.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Served = tuple[str, dict[str, Any]]


class Absent(Exception):
    """The server's program is not installed; the message says how to get it."""


def free_port() -> int:
    """Find a TCP port on loopback that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Return once somebody listens on `port`; raises `RuntimeError` when `process` ends or `seconds` are over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError("the server doesn't answer")


@contextlib.contextmanager
def running(command: list[str], port: int, **options: Any) -> Iterator[None]:
    """Run a server process, from when it listens to when the block ends."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        wait_for_port(port, process)
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def s3(root: Path) -> Iterator[Served]:
    """Serve an S3 bucket by moto's server."""
    try:
        import moto.server  # noqa: F401
        import s3fs
    except ImportError as error:
        raise Absent(f"{error}; pip install s3fs 'moto[server]'") from error
    port = free_port()
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        options = {
            "key": "test",
            "secret": "test",
            "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"},
        }
        bucket = f"hospital-{uuid.uuid4().hex[:8]}"
        s3fs.S3FileSystem(**options).call_s3("create_bucket", Bucket=bucket)
        yield f"s3://{bucket}/exchange", options


@contextlib.contextmanager
def sftp(root: Path) -> Iterator[Served]:
    """Serve a folder below `root` by OpenSSH's SFTP, with keys made for it."""
    sshd = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd",) if os.path.exists(p)), None)
    keygen = shutil.which("ssh-keygen")
    if sshd is None or keygen is None:
        raise Absent("OpenSSH's server is not installed; apt-get install openssh-server")
    try:
        import sshfs  # noqa: F401
    except ImportError as error:
        raise Absent(f"{error}; pip install sshfs") from error
    port, home = free_port(), root / "sshd"
    home.mkdir(parents=True)
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    shutil.copy(home / "user.pub", home / "authorized_keys")
    host_key = (home / "host.pub").read_text().rsplit(" ", 1)[0]
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (home / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nPidFile {home}/pid\nUsePAM no\n"
        f"AuthorizedKeysFile {home}/authorized_keys\nPasswordAuthentication no\nStrictModes no\n"
        "PermitRootLogin prohibit-password\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    with running([sshd, "-D", "-f", str(home / "config")], port):
        options = {
            "port": port,
            "username": getpass.getuser(),
            "client_keys": [str(home / "user")],
            "known_hosts": str(home / "known_hosts"),
        }
        yield f"ssh://127.0.0.1{root}/exchange", options


@contextlib.contextmanager
def webdav(root: Path) -> Iterator[Served]:
    """Serve a folder below `root` by wsgidav."""
    try:
        import cheroot  # noqa: F401
        import webdav4  # noqa: F401
        import wsgidav  # noqa: F401
    except ImportError as error:
        raise Absent(f"{error}; pip install webdav4 wsgidav cheroot") from error
    port, folder = free_port(), root / "dav"
    folder.mkdir(parents=True)
    with running(webdav_command(folder, port), port):
        yield "webdav://exchange", {"base_url": f"http://127.0.0.1:{port}"}


def webdav_command(folder: Path, port: int) -> list[str]:
    """Return the command that serves a folder by WebDAV; started again, it serves what was there."""
    command = [
        sys.executable,
        "-c",
        "from wsgidav.server.server_cli import run; run()",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--root",
        str(folder),
    ]
    return [*command, "--auth", "anonymous", "--server", "cheroot", "--no-config"]


@contextlib.contextmanager
def folder(root: Path) -> Iterator[Served]:
    """Serve a plain folder below `root`."""
    yield str(root / "exchange"), {}


SERVERS = {"folder": folder, "s3": s3, "sftp": sftp, "webdav": webdav}
