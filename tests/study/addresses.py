"""Addresses with secrets in them, in all the ways in which one writes them well or badly."""

from __future__ import annotations

from hypothesis import strategies as st

#: Never part of a host, a name of an option or the words of an error, whole or cut where a parser may cut it.
MARK = "Zq7Xk"
between = st.sampled_from(["", "@", "/", ":", "?", "#", "[", "]", "%", "&", "=", " ", "%40", "é"])
secrets = st.lists(between, max_size=4).map(lambda parts: MARK + "".join(f"{part}{MARK}" for part in parts))
schemes = st.sampled_from(
    ["postgresql", "postgres", "ssh", "sftp", "https", "http", "s3", "webdav", "simplecache::ssh", "filecache::s3"]
)
ESCAPED_COLON = "{scheme}://user%3A{secret}@host.example.org/name"
forms = st.sampled_from(
    [
        "{scheme}://user:{secret}@host.example.org/name",
        "{scheme}://user:{secret}@host.example.org:5432/name?sslmode=require",
        "{scheme}://user:{secret}@host.example.org:port/name",
        "{scheme}://user:{secret}@[host/name",
        "{scheme}://user:{secret}@/name?host=/run/postgresql",
        "{scheme}://:{secret}@host",
        ESCAPED_COLON,
        "//user:{secret}@host.example.org/name",
        "{scheme}://host.example.org/name?password={secret}",
        "{scheme}://host.example.org/name?sslmode=require&token={secret}&application_name=a",
        "{scheme}://host.example.org/name#{secret}",
        "{scheme}:/user:{secret}@host.example.org/name",
        "user:{secret}@host.example.org:/folder",
        "host=db.example.org dbname=ds password={secret}",
    ]
)
