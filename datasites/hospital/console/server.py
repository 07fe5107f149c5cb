"""Serves the console beside the datasite's loop: one uvicorn server in a thread of the same process.

A thread and not a child process: it lives and dies with the datasite (also when that is killed), holds no second copy
of the key on disk or in memory of another process, and needs no supervision. Uvicorn installs signal handlers in main
threads only, so stopping stays with the datasite. The port is taken before anything starts.
"""

from __future__ import annotations

import logging
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from datasites.hospital.config import ConsoleSettings
from datasites.hospital.console.uploads import bounded
from datasites.study.errors import InputError

STOP_SECONDS = 10.0

log = logging.getLogger(__name__)


def take_port(settings: ConsoleSettings) -> socket.socket:
    """Open a listening socket on the console's host and port; raises `InputError` naming what to change."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except OSError as error:
        raise InputError(
            f"console: cannot listen on {settings.host} port {settings.port} ({error.strerror or error}); stop what "
            "uses it, set [console] port in datasite.toml, or serve with --no-console"
        ) from error


@contextmanager
def serving(settings: ConsoleSettings) -> Iterator[str]:
    """Serve the console until the block ends; yields its address ("" when it is switched off).

    Raises `InputError` when the port is taken; nothing has started then. Django must be set up (`connect`).
    """
    if not settings.enabled:
        yield ""
        return
    listener = take_port(settings)
    try:
        import uvicorn
        from django.core.handlers.asgi import ASGIHandler

        # WhiteNoise hands files out as plain iterators, which Django reads whole under ASGI; they are small.
        warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")
        server = uvicorn.Server(
            uvicorn.Config(
                bounded(ASGIHandler()),
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                # Whose word counts on where a request came from, and by which scheme.
                proxy_headers=bool(settings.trusted_proxy),
                forwarded_allow_ips=settings.trusted_proxy or None,
                limit_concurrency=100,
                timeout_graceful_shutdown=3,
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="console", daemon=True)
        thread.start()
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        log.info("console: %s", address)
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join(STOP_SECONDS)
    finally:
        listener.close()
