"""What a PostgreSQL address in `datasite.toml` says, read by libpq's own parser, so it means what it means to psql.

Claim: every option of the address is either passed on to libpq as it stands, or the address is refused with a sentence
that names the option; none is dropped, and none is given twice. So `sslmode=verify-full` connects with TLS to a server
of that name or not at all. No refusal holds a password.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from datasites.study.addresses import ESCAPES, hidden, is_name, shown
from datasites.study.errors import InputError

SCHEMES = ("postgresql://", "postgres://")
#: What the datasite decides itself, or what would hide from `doctor` what holds.
_NOT_HERE = {
    "service": "write what the service file says into the address",
    "client_encoding": "it is always UTF-8",
    "fallback_application_name": "use application_name",
}
#: Unless the address says otherwise: a server that has gone without a word is noticed within half a minute.
_PATIENCE = {
    "application_name": "datasite",
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
#: Whole numbers, which libpq reads only once it connects.
_NUMBERS = frozenset(_PATIENCE) - {"application_name"}
_HOW = f"write postgresql://user:password@host:port/name?option=value; {ESCAPES}"


@dataclass(frozen=True)
class PostgresAddress:
    """Database, server and how to reach it. `options`: by libpq's names, secret ones included."""

    name: str
    user: str = ""
    password: str = field(default="", repr=False)
    host: str = ""
    port: str = ""
    options: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> PostgresAddress:
        """Read an address; raises `InputError` in one sentence without its secrets."""
        if importlib.util.find_spec("psycopg") is None:
            raise InputError("PostgreSQL needs a package; pip install 'datasites[postgresql]'")
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        _require_plain(url)
        for name in _option_names(url):
            _require_known(url, name)
        try:
            parameters = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
        except ProgrammingError as error:  # whose words quote what may be a secret
            raise _refused(url, f"can't be read; {_HOW}") from error
        if not parameters.get("dbname"):
            raise _refused(url, f"names no database; {_HOW}")
        if not is_name(parameters.get("user", "")):
            raise _refused(url, f"has a user with a character that may belong to a password; {_HOW}")
        if "/" in parameters["dbname"]:
            raise _refused(url, f"names a database with a / in it; {_HOW}")
        for host in parameters.get("host", "").split(","):
            if not (host.startswith(("/", "@")) or re.fullmatch(r"[A-Za-z0-9._:%-]*", host)):
                raise _refused(url, f"names a host that is not valid; {_HOW}")
        for port in parameters.get("port", "").split(","):
            if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
                raise _refused(url, f"names a port that is no whole number from 1 to 65535; {_HOW}")
        _require_values(url, parameters)
        own = {name: parameters.pop(name, "") for name in ("dbname", "user", "password", "host", "port")}
        return cls(own.pop("dbname"), **own, options={**_PATIENCE, **parameters})

    def in_django(self) -> dict[str, object]:
        """Return the address as Django's settings have it; a connection is kept, and tested before it is used again."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": self.name,
            "USER": self.user,
            "PASSWORD": self.password,
            "HOST": self.host,
            "PORT": self.port,
            "OPTIONS": dict(self.options),
        }


def options_in_words(options: dict[str, str]) -> str:
    """Return the options of a connection for people; secret ones, by libpq's own mark, are hidden."""
    secret = {name for name, mark in _libpq_options().items() if mark != ""}
    return ", ".join(f"{name}={'***' if name in secret else value}" for name, value in sorted(options.items()))


def _libpq_options() -> dict[str, str]:
    """Return names that this libpq knows, and how it marks them: "*" for a secret, "D" for debugging."""
    from psycopg import pq

    return {option.keyword.decode(): (option.dispchar or b"").decode() for option in pq.Conninfo.get_defaults()}


def _refused(url: str, why: str) -> InputError:
    return InputError(f"{shown(url)} {why}")


def _require_plain(url: str) -> None:
    """Refuse a password that libpq would take for a host: the address must end its user where it seems to."""
    rest = url.partition("://")[2]
    userinfo, at, server = rest.rpartition("@")
    if at and re.search(r"[/?@\s]", userinfo):
        raise _refused(url, f"has a user, a password or an option that is not escaped; {_HOW}")
    authority = re.split(r"[/?]", server)[0]
    if not url.isprintable() or "#" in server or ("[" in authority) != ("]" in authority):
        raise _refused(url, f"can't be read; {_HOW}")


def _option_names(url: str) -> list[str]:
    query = url.rpartition("@")[2].partition("?")[2]
    return [unquote(option.partition("=")[0]) if "=" in option else "" for option in query.split("&")] if query else []


def _require_known(url: str, name: str) -> None:
    marks = _libpq_options()
    if not re.fullmatch(r"[a-z][a-z_]{0,39}", name):
        raise _refused(url, f"has an option without a name or without a value; {_HOW}")
    if name in _NOT_HERE:
        raise _refused(url, f"has the option {name}, which is not taken here: {_NOT_HERE[name]}")
    if name != "ssl" and marks.get(name, "D") == "D":
        like = difflib.get_close_matches(name, [known for known, mark in marks.items() if mark != "D"], 1)
        remedy = f"did you mean {like[0]}?" if like else "correct it or remove it"
        raise _refused(
            url, f"has the option {name}, which PostgreSQL's library does not know or keeps for debugging; {remedy}"
        )
    if _option_names(url).count(name) > 1:
        raise _refused(url, f"has the option {name} twice; give it once")


def _require_values(url: str, parameters: dict[str, str]) -> None:
    """Let libpq look at the values of all options, without a connection: to a socket that can't be there."""
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

    for name in _NUMBERS & parameters.keys():
        if not re.fullmatch(r"[0-9]{1,9}", parameters[name]):
            raise _refused(url, f"has the option {name}, whose value must be a whole number; correct it")
    hosts = ",".join("/dev/null" for _ in parameters.get("host", "").split(","))
    nowhere = {name: value for name, value in parameters.items() if name != "hostaddr"} | {"host": hosts}
    connection = pq.PGconn.connect_start(make_conninfo("", **nowhere).encode())
    try:
        problem = connection.get_error_message().strip()
    finally:
        connection.finish()
    if problem and not problem.startswith("connection to server"):
        raise _refused(url, f"has an option whose value can't be used: {hidden(problem, url)}; correct it")
