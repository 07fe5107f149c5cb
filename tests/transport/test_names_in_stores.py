"""What a sweep removes is the file that was listed, whatever its name means to a library or a server.

Against real servers on loopback. Somebody who writes to the store lays names beside honest messages that a library
could take for them, or for files of other folders.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from datasites.transport.store import Store
from datasites.transport.sweep import Sweep

pytestmark = pytest.mark.waits

Lay = Callable[[str], None]
HONEST = "msgv2_1.tar.gz"
#: Each could be taken for `HONEST`, `sub/other` or `../victim`, or for nothing at all.
LOOK_ALIKES = [
    "msg%762_1.tar.gz",
    "msg%25762_1.tar.gz",
    "sub%2fother",
    "sub%2Fother",
    "%2e%2e%2fvictim",
    "x%2f..%2fmsgv2_1.tar.gz",
    f"{HONEST}?versionId=null",
    f"{HONEST}?x",
    f"{HONEST}#x",
    f"{HONEST};x",
    f"{HONEST} ",
    f"{HONEST}%",
    f"{HONEST}%00",
    f"{HONEST}\n",
    " ",
    "a+b",
    "[a]*",
    "a\\b",
    "é",
    "e\u0301",
    "\U0001f980",
]


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of so many names are crowded."""
    monkeypatch.setattr("datasites.transport.sweep.MOST_NAMES", 5)


@pytest.fixture
def place(served) -> tuple[Store, str, Lay]:
    """A store, a folder in it, and what lays a file of any name there, past our own code."""
    url, options = served
    store, folder = Store(url, **options), f"names/{os.urandom(4).hex()}/inbox"
    for key in (f"{folder}/{HONEST}", f"{folder}/sub/other", f"{folder.rpartition('/')[0]}/victim"):
        store.put(key, b"honest")

    def lay(name: str) -> None:
        if url.startswith("webdav"):
            path = quote(f"/exchange/{folder}/{name}")
            httpx.put(options["base_url"] + path, content=b"junk").raise_for_status()
        elif url.startswith("s3"):
            bucket, _, root = url.removeprefix("s3://").partition("/")
            store.files.fs.call_s3("put_object", Bucket=bucket, Key=f"{root}/{folder}/{name}", Body=b"junk")
        else:
            (Path(url.removeprefix("ssh://127.0.0.1"), folder) / name).write_bytes(b"junk")

    return store, folder, lay


def swept(store: Store, folder: str) -> list[str]:
    """What the sweep says that it has removed of a folder in which `HONEST` and `sub` are wanted."""
    looks, removed = Sweep(store), list[str]()
    for _ in range(2 * (len(LOOK_ALIKES) // 5 + 4)):
        removed += looks.look(folder, lambda name: name in (HONEST, "sub"), 5).removed
    return removed


def test_what_is_removed_is_what_was_listed_and_nothing_else(place: tuple[Store, str, Lay], crowded: None) -> None:
    store, folder, lay = place
    is_s3 = store.url.startswith("s3")
    laid = {name for name in LOOK_ALIKES if not (is_s3 and "\n" in name)}  # moto takes no such key
    for name in laid:
        lay(name)
    before = set(store.walk(folder))
    assert before == {HONEST, "sub", *laid}
    removed = swept(store, folder)
    assert before - set(store.walk(folder)) == set(removed), "what is told to be removed is gone, and nothing else is"
    for key in (f"{folder}/{HONEST}", f"{folder}/sub/other", f"{folder.rpartition('/')[0]}/victim"):
        assert store.get(key) == b"honest"
    assert laid - set(removed) == {name for name in laid if is_s3 and "?versionId=" in name}, "s3fs can't address it"


@pytest.mark.parametrize("key", ["a%41", "a%2fb", "%2e%2e", "a+b", "a=b@c", "%%"])
def test_a_key_of_ours_is_one_file(place: tuple[Store, str, Lay], key: str) -> None:
    store, folder, _ = place
    store.put(f"{folder}/{key}", b"1")
    store.put(f"{folder}/{key}", b"2")
    assert store.get(f"{folder}/{key}") == store.get(f"{folder}/{key}", limit=5) == b"2"
    assert store.size(f"{folder}/{key}") == 1
    assert store.list(folder) == sorted([key, HONEST, "sub"])
    store.put(f"{folder}/sub/{key}/x", b"3")
    assert store.list(f"{folder}/sub/{key}") == ["x"]
    assert store.delete_folder(f"{folder}/sub/{key}") == 1
    assert store.list(f"{folder}/sub") == ["other"]
    store.delete(f"{folder}/{key}")
    assert store.list(folder) == [HONEST, "sub"]


def test_names_that_are_no_text_hide_nothing_and_are_not_told_to_be_removed_while_they_lie_there(
    place: tuple[Store, str, Lay], crowded: None
) -> None:
    store, folder, _ = place
    if store.url.startswith("s3"):
        pytest.skip("its names are text")
    if store.url.startswith("webdav"):
        pytest.skip("it is asked by names that are text, and so can't be laid by it")
    where = Path(store.url.removeprefix("ssh://127.0.0.1"), folder)
    for number in range(10):
        Path(os.fsdecode(os.fsencode(where) + b"/\xff%d" % number)).write_bytes(b"junk")
    removed = swept(store, folder)
    assert len(removed) == 10 - len([name for name in os.listdir(where) if name not in (HONEST, "sub")])
    assert store.get(f"{folder}/{HONEST}") == b"honest"


def test_what_lies_under_a_name_that_no_folder_has_is_not_told_to_be_removed(served, crowded: None) -> None:
    """S3 has keys such as `x/`, `x//y` and `x/../y`."""
    url, options = served
    if not url.startswith("s3"):
        pytest.skip("it has no such names")
    store, folder = Store(url, **options), f"names/{os.urandom(4).hex()}/inbox"
    bucket, _, root = url.removeprefix("s3://").partition("/")
    keys = [f"{root}/{folder}/{rest}" for rest in ("", "/", "/y", "//", "../y", "./y", "z/", "inbox/y")]
    for key in keys:
        store.files.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"junk")
    store.put(f"{folder}/{HONEST}", b"honest")
    assert swept(store, folder) == []
    listed = store.files.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{root}/{folder}")["Contents"]
    assert {entry["Key"] for entry in listed} == {*keys, f"{root}/{folder}/{HONEST}"}


def test_a_folder_that_is_not_crowded_keeps_files_in_flight(place: tuple[Store, str, Lay]) -> None:
    """What rclone and Syncthing write before they give a file its name."""
    store, folder, lay = place
    names = [f"{HONEST}.1a2b3c4d.partial", ".syncthing.msgv2.tmp", "~syncthing~msgv2.tmp"]
    for name in names:
        lay(name)
    assert swept(store, folder) == []
    assert {*names} <= set(store.walk(folder))


def test_a_base_address_with_an_escape_is_the_folder_of_that_name(served) -> None:
    url, options = served
    if not url.startswith("webdav"):
        pytest.skip("it has no base address")
    name = f"a%41 {os.urandom(4).hex()}"
    base = f"{options['base_url']}/{quote(name)}"
    httpx.request("MKCOL", f"{base}/").raise_for_status()
    store = Store("webdav://exchange", base_url=base)
    store.put("x/y%41", b"1")
    assert store.get("x/y%41") == httpx.get(f"{base}/exchange/x/y%2541").content == b"1"
    assert store.list("x") == ["y%41"]
