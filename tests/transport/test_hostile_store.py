"""What a meddling store has played is counted for each trick, and all of it is done by its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transport.hostile_store import HostileStore

MASKED, ROUND = "mail/study/to/00000002.masked.from", "mail/study/to/00000002.round.from"


def test_each_trick_is_counted_on_its_own(tmp_path: Path) -> None:
    store = HostileStore(str(tmp_path), [("masked", "drop"), ("round", "drop three times"), ("close", "drop")])
    for _ in range(5):
        store.put(ROUND, b"words")
    store.put("mail/study/to/00000002.round.another", b"words")
    assert store.played == (0, 3, 0)
    store.put(MASKED, b"words")
    assert store.played == (1, 3, 0)
    assert not (tmp_path / MASKED).exists()
    assert (tmp_path / ROUND).read_bytes() == b"words"


@pytest.mark.parametrize("trick", ["delay", "half written"])
def test_what_is_to_be_done_later_is_done_by_the_end(tmp_path: Path, trick: str) -> None:
    store = HostileStore(str(tmp_path), [("masked", trick)])
    store.put(MASKED, b"words")
    store.end()
    assert (tmp_path / MASKED).read_bytes() == b"words"
