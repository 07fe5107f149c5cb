"""Addresses of outside services as people may see them: without what is secret in them.

Claim: no part of an address that can be a secret (what stands where a password does, a user that may be a token, the
values of options but for those that are known to be none, a fragment) is in what `shown` gives, or left by `hidden`,
however badly the address is written. Assumption: whoever wrote it put the secret into one of those places, and not
into the name of a host or of a folder, nor of a user where users are named (SSH, PostgreSQL); and, for texts of others,
that it has `_SHORTEST` characters or more.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, unquote_plus, urlsplit

HIDDEN = "***"
#: Where the user's name is a name, and not a token.
_NAMED_USERS = frozenset({"ssh", "sftp", "postgresql", "postgres"})
#: Options whose values are no secrets: of PostgreSQL's addresses (libpq).
_OPEN_OPTIONS = frozenset(
    {"host", "hostaddr", "port", "dbname", "user", "passfile", "application_name", "connect_timeout", "channel_binding"}
    | {"target_session_attrs", "load_balance_hosts", "requirepeer", "require_auth", "gssencmode", "krbsrvname"}
    | {"ssl", "sslmode", "sslnegotiation", "sslcert", "sslkey", "sslcertmode", "sslrootcert", "sslcrl", "sslcrldir"}
    | {"sslsni", "ssl_min_protocol_version", "ssl_max_protocol_version", "tcp_user_timeout", "keepalives"}
    | {"keepalives_idle", "keepalives_interval", "keepalives_count"}
)
#: Names that are shown although their values are not. Other names may be the end of a value that was not escaped.
_SECRET_OPTIONS = frozenset({"password", "sslpassword", "oauth_client_secret", "options", "token", "key", "secret"})
#: What to write instead of characters that end a part of an address.
ESCAPES = "write @ : / ? # [ ] % & in user, password and values of options as %40 %3A %2F %3F %23 %5B %5D %25 %26"
#: A secret that is shorter is not looked for in other texts: it would blot out letters everywhere.
_SHORTEST = 3


def shown(address: str) -> str:
    """Return the address with *** in the place of each secret."""
    return _split(address)[0]


def hidden(text: str, address: str) -> str:
    """Return a text from elsewhere (an error, say) without the secrets of this address."""
    safe, secrets = _split(address)
    text = text.replace(address, safe) if address else text
    for secret in sorted(secrets, key=len, reverse=True):
        plain = unquote(secret)
        whole = {secret, plain, unquote_plus(secret), quote(secret), quote(plain), quote(plain, safe="")}
        # A parser that was misled by a character in a password quotes the part that it took for something else.
        parts = {part for form in whole for part in re.split(r"[/?#@:\[\]&=\s]|%..", form)}
        for form in sorted(whole | parts, key=len, reverse=True):
            if len(form) >= _SHORTEST:
                text = text.replace(form, HIDDEN)
    return text


def is_name(user: str) -> bool:
    """Return whether a user is a name: its colon escaped as well, a password would be a part of it."""
    return bool(re.fullmatch(r"[\w.+@ \\-]*", unquote(user)))


def is_address(text: str) -> bool:
    """Return whether a text is an address that may hold a secret; a path, a name or an e-mail address is none."""
    return "://" in text or bool(re.search(r":.*@|=", text, re.DOTALL))


def fault_of(address: str) -> str:
    """Say what makes parsers read an address with a host differently; "" for nothing. Holds no secret."""
    userinfo, at, server = address.partition("://")[2].rpartition("@")
    if at and (re.search(r"[\[\]]", userinfo) or re.search(r":.*[/?#@\s]", userinfo, re.DOTALL)):
        return f"has a user or a password that is not escaped; {ESCAPES}"
    if not address.isprintable():
        return "has characters that can't be printed; take them out"
    try:
        urlsplit(address)
        port = urlsplit(f"//{server}").port
    except ValueError:  # whose words quote what may be a secret
        return "has a host or a port that can't be read; a port is a whole number from 1 to 65535"
    return "has port 0; a port is a whole number from 1 to 65535" if port == 0 else ""


def _ports(rest: str) -> list[str]:
    """Return what stands where ports do, of one server or several."""
    servers = re.sub(r"\[[0-9A-Fa-f:.%]*\]", "", re.split("[/?#]", rest)[0])
    return [server.partition(":")[2] for server in servers.split(",") if ":" in server]


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and int(text[:6]) < 65536)


def _split(address: str) -> tuple[str, set[str]]:
    """Return the address as it may be shown, and the secrets in it."""
    secrets: set[str] = set()
    scheme, separator, rest = address.partition("://")
    if not separator:
        is_path = address.startswith(("/", "./", "../", "~")) and not re.match("//.*:.*@", address, re.DOTALL)
        if is_path or not is_address(address):
            return address, secrets
        # Half an address, as `host:/folder` with a password or libpq's `password=… host=…`: nothing of it is sure.
        half = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", address)
        return f"{half[0] if half else ''}{HIDDEN}", {address[half.end() :] if half else address}
    # The last one: a password that was written as it is may hold @, / and ? itself.
    userinfo, at, rest = rest.rpartition("@")
    # The end of a password, or of an option's value: what follows may be part of it. And a port that is none may be a
    # password to which no host was written.
    if re.search(r"[/?#]", userinfo) or not all(map(_is_port, _ports(rest))):
        whole = f"{userinfo}{at}{rest}"
        return f"{scheme}://{HIDDEN}", {whole, userinfo, rest, *re.split(r"[/?#@:&=]", whole)} - {""}
    if at:
        user, colon, password = userinfo.partition(":")
        # A colon that was escaped with all the rest would make the password part of the user.
        named = scheme.rpartition("::")[2].casefold() in _NAMED_USERS and is_name(user)
        secrets |= {password} if named else {user, password, userinfo}
        userinfo = (user if named else HIDDEN) + (f":{HIDDEN}" if colon and named else "")
    rest, hash, fragment = rest.partition("#")
    secrets.add(fragment)
    before, question, query = rest.partition("?")
    options = []
    for option in query.split("&"):
        name, equals, value = option.partition("=")
        if equals and name in _OPEN_OPTIONS:
            options.append(option)
        elif equals and name in _SECRET_OPTIONS:
            options.append(f"{name}={HIDDEN}")
            secrets.add(value)
        elif option:
            options.append(HIDDEN)
            secrets |= {option, name, value}
    ending = f"{hash}{HIDDEN}" if hash else ""
    return f"{scheme}://{userinfo}{at}{before}{question}{'&'.join(options)}{ending}", secrets - {""}
