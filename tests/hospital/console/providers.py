"""Identity providers for tests: a real one in a process of its own, and one that answers whatever a test wants.

Both can be stopped and started again, on the same port.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urljoin, urlsplit

import jwt
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from django.conf import settings
from django.test import Client, override_settings
from loopback_servers import free_port

from datasites.hospital.config import OidcSettings

CLIENT, SECRET, PASSWORD = "datasite", "the secret of console and provider", "another long passphrase"
ANN = "ann@cleveland.example.org"


def oidc(base: str, **changes: Any) -> OidcSettings:
    return OidcSettings(
        **{
            "name": "Cleveland",
            "issuer": base.rstrip("/"),
            "authorization_endpoint": f"{base}authorize/",
            "token_endpoint": f"{base}token/",
            "userinfo_endpoint": f"{base}userinfo/",
            "jwks_uri": f"{base}.well-known/jwks.json",
            "client_id": CLIENT,
            **changes,
        }
    )


def configured(terms: OidcSettings) -> override_settings:
    """Django's settings as `settings.py` makes them of a datasite.toml with these terms."""
    from datasites.hospital.settings import _provider

    home = settings.DATASITE
    secret = home.root / terms.client_secret_file
    secret.write_text(SECRET)
    secret.chmod(0o600)
    console = home.settings.console.model_copy(update={"oidc": terms})
    return override_settings(
        DATASITE=dataclasses.replace(home, settings=home.settings.model_copy(update={"console": console})),
        AUTHENTICATION_BACKENDS=[*settings.AUTHENTICATION_BACKENDS, settings.PROVIDER_BACKEND],
        **_provider(terms),
    )


def fresh() -> Client:
    return Client(raise_request_exception=False, SERVER_NAME="localhost")


class Real:
    """The provider of `identity_provider.py`; each start makes its people, and its keys, anew."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[str] | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/o/"

    def start(self) -> None:
        script = Path(__file__).with_name("identity_provider.py")
        command = [sys.executable, str(script), str(self.port), "http://localhost/provider/callback/"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes connections and answers none."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


class Person:
    """Somebody's browser, which holds a session here and another one at the provider."""

    def __init__(self) -> None:
        self.here = fresh()
        self.there = requests.Session()
        self.asked = 0

    def sign_in(self, name: str, start: str = "/provider/") -> Any:
        """Follow every redirect between the two; type the password where the provider asks for it."""
        return self.here.get(self.way_back(name, start))

    def way_back(self, name: str, start: str = "/provider/") -> str:
        """Sign in at the provider, up to the address here to which it sends the browser back."""
        answer: Any = self.there.get(self.here.get(start).headers["Location"], allow_redirects=False)
        for _ in range(6):
            if answer.status_code == 200:
                self.asked += 1
                token = re.search(r'csrfmiddlewaretoken" value="([^"]+)', answer.text)
                following = re.search(r'name="next" value="([^"]+)', answer.text)
                assert token
                assert following
                form = {
                    "csrfmiddlewaretoken": token[1],
                    "username": name,
                    "password": PASSWORD,
                    "next": following[1].replace("&amp;", "&"),
                }
                answer = self.there.post(answer.url, form, allow_redirects=False)
            target = urljoin(answer.url, answer.headers["Location"])
            parts = urlsplit(target)
            if parts.hostname == "localhost":
                return f"{parts.path}?{parts.query}"
            answer = self.there.get(target, allow_redirects=False)
        raise AssertionError("the provider never came back")


#: How a provider is unavailable: nobody listens, every answer is an error, or none comes.
Away = Literal["refuses", "fails", "hangs"]
#: What is asked of it for one sign-in, in this order.
QUESTIONS = ("/token/", "/.well-known/jwks.json", "/userinfo/")


class Liar:
    """A provider that answers whatever a test wants: `claims` in the ID token, `info` from the userinfo endpoint."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.signs_with: Any = self.key
        self.algorithm = "RS256"
        # Bound as long as this lives: while the provider is unavailable nobody else takes its port.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = int(self._reserved.getsockname()[1])
        self.claims: dict[str, Any] = {}
        self.info: dict[str, Any] = {}
        self.nonce = ""
        self.asked: list[str] = []
        self._away: tuple[Away, str] | None = None
        self._back = threading.Event()
        self._server: http.server.ThreadingHTTPServer | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def honest(self, subject: str = "42", email: str = ANN) -> None:
        now = int(time.time())
        self.claims = {
            "iss": self.base.rstrip("/"),
            "aud": CLIENT,
            "sub": subject,
            "iat": now,
            "exp": now + 60,
            "auth_time": now,
        }
        self.info = {"sub": subject, "email": email, "email_verified": True}

    def answer(self, path: str) -> dict[str, Any]:
        if path.startswith("/token"):
            token = jwt.encode(
                {"nonce": self.nonce, **self.claims}, self.signs_with, self.algorithm, headers={"kid": "1"}
            )
            return {"id_token": token, "access_token": "a", "token_type": "Bearer"}
        if path.startswith("/userinfo"):
            return self.info
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": "1", "alg": "RS256", "use": "sig"}]}

    def comes_back(self, client: Client, start: str = "/provider/", **query: str) -> Any:
        """The browser's way: to the provider and back with a code."""
        sent = parse_qs(urlsplit(client.get(start).headers["Location"]).query)
        self.nonce = sent["nonce"][0]
        assert sent["code_challenge_method"] == ["S256"]
        return client.get("/provider/callback/", {"code": "c", "state": sent["state"][0], **query})

    def start(self) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of one who waits no more
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    def close(self) -> None:
        self.stop()
        self._reserved.close()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @contextlib.contextmanager
    def away(self, how: Away, question: str) -> Iterator[None]:
        """It goes away right before that question of a sign-in, and comes back at the end of the block."""
        self.asked.clear()
        self._away = (how, question)
        self._back.clear()
        if how == "refuses" and question == QUESTIONS[0]:
            self.stop()
        try:
            yield
        finally:
            self._away = None
            self._back.set()
            if self._server is None:
                self.start()

    def _said(self, path: str) -> tuple[int, dict[str, Any]]:
        self.asked.append(path)
        how, question = self._away or ("", "")
        if how == "refuses" and QUESTIONS.index(path) + 1 == QUESTIONS.index(question):
            self.stop()  # before it answers: the next question finds nobody
        if how == "hangs" and path == question:
            self._back.wait(60)
        return (500 if how == "fails" and path == question else 200), self.answer(path)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        liar = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, words = liar._said(self.path)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(words).encode())

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        return Handler
