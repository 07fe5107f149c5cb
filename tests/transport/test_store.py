"""The store's promises on a local folder; other kinds of store are held to them in test_remote_stores."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasites.transport import store as store_module
from datasites.transport.store import (
    BadKey,
    NotAFile,
    Store,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreUnreachable,
    checked_key,
)
from datasites.transport.store_errors import diagnose


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.tmp-x", "a b", "a\nb", "a\0b", "é", "x" * 201],
)
def test_unsafe_keys_are_refused_by_every_call(tmp_path, key):
    store = Store(tmp_path)
    for call in (store.get, store.size, store.exists, store.list, store.delete, store.delete_folder):
        with pytest.raises(BadKey):
            call(key)
    with pytest.raises(BadKey):
        store.put(key, b"")
    with pytest.raises(BadKey):
        store.wait([key], 1)


@given(st.text(max_size=40))
def test_a_key_that_passes_stays_inside(key):
    try:
        checked_key(key)
    except BadKey:
        return
    assert os.path.normpath(os.path.join("/root", key)) == f"/root/{key}"
    assert not any(part.startswith(".") for part in key.split("/"))


def test_files_in_flight_are_not_listed_and_leave_nothing(tmp_path):
    store = Store(tmp_path, fsync=True)
    store.put("a/x", b"1")
    (tmp_path / "a" / ".tmp-left-by-a-crash").write_bytes(b"half")
    assert store.list("a") == ["x"]
    assert store.delete_folder("a") == 2
    assert not (tmp_path / "a").exists()


def denied(*_, **__):
    raise PermissionError(errno.EPERM, "no")


def test_a_folder_of_which_something_stays_is_not_told_to_be_deleted(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.put("a/b/x", b"1")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", denied)
        with pytest.raises(StoreError, match="not all in it can be deleted"):
            store.delete_folder("a")
    store.delete_folder("a")
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_named_and_leaves_the_old_content(tmp_path):
    """A real limit on file size in a process of its own: the put fails as `StoreFull`, the old bytes stay whole."""
    Store(tmp_path).put("a/x", b"old")
    code = (
        "import resource, signal, sys\n"
        "from datasites.transport.store import Store, StoreFull\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    Store(sys.argv[1]).put('a/x', b'n' * 5000)\n"
        "except StoreFull as error:\n    print('full:', 'free some space' in str(error))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout == "full: True\n"
    assert Store(tmp_path).get("a/x") == b"old"
    assert os.listdir(tmp_path / "a") == ["x"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "x"), StoreFull),
        (OSError(errno.EDQUOT, "x"), StoreFull),
        (PermissionError(errno.EACCES, "x"), StoreDenied),
        (OSError(errno.EROFS, "x"), StoreDenied),
        (FileNotFoundError(errno.ENOENT, "x"), StoreMissing),
        (OSError(errno.ESTALE, "x"), StoreUnreachable),
        (ConnectionResetError(), StoreUnreachable),
        (TimeoutError(), StoreUnreachable),
        (RuntimeError("x"), StoreError),
    ],
)
def test_errors_are_told_apart(error, kind):
    problem = diagnose(error, "store s3://x: cannot put k")
    assert type(problem) is kind
    assert str(problem).startswith("store s3://x: cannot put k: ")


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ENOSPC])
def test_who_waits_for_a_store_is_told_of_no_start(tmp_path, monkeypatch, number):
    """Who called is told to do it again; both that nothing is lost."""
    monkeypatch.setattr(store_module, "RETRY_DELAYS", (0.001,))
    store = Store(tmp_path)

    def fail(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(store.files, "write", fail)
    with pytest.raises(StoreError) as caught:
        store.put("a/x", b"1")
    assert str(caught.value).startswith(f"store {store.shown}: cannot put a/x: ")
    for waited in (False, True):
        name, reason = caught.value.outage(waited=waited)
        assert name == f"store {store.shown}"
        assert reason.startswith("cannot put a/x: ")
        assert reason.endswith("; nothing is lost")
        assert ("again" in reason) is not waited
        assert "start" not in reason


def test_transient_errors_are_tried_again_and_permanent_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "RETRY_DELAYS", (0.001, 0.001, 0.001))
    store = Store(tmp_path)
    tries = []

    def write(error: OSError, until: int):
        def attempt(key, data, real=type(store.files).write):
            tries.append(key)
            if len(tries) < until:
                raise error
            real(store.files, key, data)

        return attempt

    monkeypatch.setattr(store.files, "write", write(OSError(errno.ESTALE, "stale handle"), 3))
    store.put("a/x", b"1")
    assert (len(tries), store.get("a/x")) == (3, b"1")
    tries.clear()
    monkeypatch.setattr(store.files, "write", write(OSError(errno.ESTALE, "stale handle"), 99))
    with pytest.raises(StoreUnreachable, match="tried several times"):
        store.put("a/x", b"2")
    assert len(tries) == 4
    tries.clear()
    monkeypatch.setattr(store.files, "write", write(PermissionError(errno.EACCES, "no"), 99))
    with pytest.raises(StoreDenied, match="check the credentials"):
        store.put("a/x", b"3")
    assert len(tries) == 1


def test_a_folder_laid_under_a_name_keeps_nobody_from_using_it(tmp_path):
    store = Store(tmp_path)
    for _ in range(2):
        (tmp_path / "a" / "x" / "deep").mkdir(parents=True)
        (tmp_path / "a" / "x" / "file").write_text("x")
        store.put("a/x", b"1")
        assert store.get("a/x") == b"1"
        store.delete("a/x")
        (tmp_path / "a" / "x" / "deep").mkdir(parents=True)
        store.delete("a/x")
        assert not store.exists("a/x")


def test_what_lies_in_place_of_a_folder_keeps_nobody_from_using_it(tmp_path, monkeypatch):
    """A file or pipe goes; where it can't, or the folder goes meanwhile, that is no outage of the store."""
    store = Store(tmp_path)
    store.put("a", b"a file")
    store.put("a/b/x", b"1")
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / "d")
    store.put("c/d/x", b"2")
    store.put("e", b"a file")
    assert store.files.make_folder("e/f").is_dir()
    assert [store.get(key) for key in ("a/b/x", "c/d/x")] == [b"1", b"2"]
    store.put("g", b"a file")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", denied)
        with pytest.raises(NotAFile, match="g: not a folder; remove it"):
            store.put("g/h/x", b"3")
    monkeypatch.setattr(store.files, "_make", lambda _: None)
    with pytest.raises(NotAFile, match="in place of its folder"):
        store.put("i/x", b"4")
    shutil.rmtree(tmp_path)
    with pytest.raises(StoreMissing):
        store.put("i/x", b"4")


@pytest.mark.waits
def test_wait_wakes_at_a_new_name_and_not_at_files_in_flight(tmp_path):
    store = Store(tmp_path)
    store.put("a/x", b"1")
    (tmp_path / "a" / ".tmp-1").write_bytes(b"half")
    assert not store.wait(["a"], 0.2)
    threading.Timer(0.2, lambda: store.put("b/c/x", b"1")).start()
    assert store.wait(["a", "b/c"], 20)


@pytest.mark.waits
def test_a_name_that_came_between_the_look_and_the_wait_is_not_missed(tmp_path):
    store = Store(tmp_path)
    seen = store.snapshot(["a"])
    store.put("a/x", b"1")
    assert store.wait(["a"], 20, since=seen)


def test_a_local_path_and_a_file_url_are_one_store(tmp_path):
    Store(tmp_path / "a b").put("k/x", b"1")
    assert Store(f"file://{tmp_path}/a%20b").get("k/x") == b"1"
    assert Store(Path(tmp_path, "a b")).local == tmp_path / "a b"


def test_an_unknown_protocol_says_what_to_install(tmp_path):
    with pytest.raises(StoreError, match="nosuch"):
        Store("nosuch://x/y")


@pytest.mark.waits
def test_stop_ends_a_wait(tmp_path):
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    assert not Store(tmp_path).wait(["a"], 30, stop)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    "address",
    ["ssh://u@host/d?port=1", "s3://bucket/p?endpoint_url=http://evil.example", "webdav://host/x?verify=false"]
    + ["file:///tmp/x?fsync=true", "https://host/x#part"],
)
def test_an_option_that_nobody_reads_is_refused_and_not_dropped(address):
    with pytest.raises(StoreError, match="has an option or a fragment.*none is taken here"):
        Store(address)
