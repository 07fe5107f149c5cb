"""Folders in which nobody knows the names beforehand: looked through part by part, and cleared of what can't be there.

Claim: of `n` names that lie in a folder, each is shown within `2 * (n / MOST_NAMES + w / most + 2)` looks, w of them
being such as are wanted and `most` what the caller takes of those at a time: a look that did not come to the end goes
on there at the next one. So names that nobody can remove hide no other for good. Where more lies there than one look
reads, what can't be there is removed, some at each look: for `SECONDS`, and `LEAST` of it however slow the store is;
from a local folder that is all that a look has read, some 20,000. Elsewhere such names are in nobody's way, and may be
files in flight of tools that carry a folder elsewhere (`x.partial`, `x.tmp`): they are removed from a local folder once
nobody has written to them for an hour by the store's own clock, and stay on other stores. Names that begin with a dot
are files in flight, too, ours or those of such tools: they are removed from a local folder that is crowded, and as old.
A file, link or empty folder is removed under its name, in that folder and nowhere else; no link is followed. What is
told to be removed is no longer there; a name that the store's library can't address exactly stays.

Assumes that the store lists a name that lies there all the time in each pass over the folder, as POSIX has it of
directories, and that at most `MOST_PASSES` folders are crowded at once: further ones begin anew at each look, and wait
for one of the others to end. Who goes on laying names faster than they are removed can go on hiding others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from datasites.transport.filesystems import MOST_NAMES
from datasites.transport.store import Store

#: What one look spends on removing, and how many names it removes in any case.
SECONDS, LEAST = 1.0, 20
#: Passes that have not come to their end, each an open directory.
MOST_PASSES = 128


@dataclass(frozen=True)
class FolderLook:
    """One look. wanted: names, in no order. removed: names that could not be there. kept: how many more of those lie
    there still though the folder is crowded, files in flight left out. is_over: whether it came to the end, after which
    the next look begins anew."""

    wanted: list[str]
    removed: list[str]
    kept: int
    is_over: bool = True


class Sweep:
    """One party's looks at folders of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._passes: dict[str, Iterator[str]] = {}

    def look(self, folder: str, wanted: Callable[[str], bool | None], most: int = MOST_NAMES) -> FolderLook:
        """Return the next names of `folder`, `most` of those wanted at a time.

        wanted: of a name whether it can be there; None for one that is passed over and stays.
        """
        begun = self._passes.pop(folder, None)
        names = self._store.walk(folder) if begun is None else begun
        found, odd, is_over = set[str](), list[str](), False
        for _ in range(MOST_NAMES):
            if len(found) >= most:
                break
            name = next(names, None)
            if name is None:
                is_over = True
                break
            is_wanted = wanted(name)
            if is_wanted:
                found.add(name)
            elif is_wanted is not None:
                odd.append(name)
        if not is_over and len(self._passes) < MOST_PASSES:
            self._passes[folder] = names
        is_crowded = not is_over or begun is not None
        clear = [name for name in odd if is_crowded or name[0] != "."]
        return FolderLook(list(found), *self._clear(folder, clear, is_crowded), is_over)

    def _clear(self, folder: str, names: list[str], is_crowded: bool) -> tuple[list[str], int]:
        """Remove as many of `names` as there is time for: those removed, and how many others could not be."""
        removed, kept, until = list[str](), 0, time.monotonic() + SECONDS
        removals = self._store.clear(folder, names, at_once=is_crowded)
        for number, (name, is_removed) in enumerate(zip(names, removals, strict=False), 1):
            if is_removed:
                removed.append(name)
            elif is_crowded and name[0] != ".":
                kept += 1
            if number >= LEAST and time.monotonic() > until:
                break
        return removed, kept
