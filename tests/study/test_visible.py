"""What strangers wrote does nothing to a page or a terminal but show."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasites.cli.terminal import Terminal, new_table
from datasites.study.visible import visible

ACTS = ("Cc", "Cf", "Cs", "Zl", "Zp")


@given(st.text(st.characters(exclude_characters="\u27e6")))
def test_no_character_acts_and_each_other_one_stands(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ACTS and c not in "\n\t"]
    assert visible(shown) == shown
    told = "".join(c for c in text if unicodedata.category(c) not in (*ACTS, "Co", "Cn") and visible(c) == c)
    assert re.sub("\u27e6U\\+[0-9A-F]+\u27e7|[\n\t]", "", shown) == told


@pytest.mark.parametrize(
    "hidden", ["\u3164", "\u115f", "\uffa0", "\u2800", "\ufe0f", "\u034f", "\U000e0100", "\u180b", "\u17b4"]
)
def test_letters_and_marks_that_show_nothing_are_spelt_out(hidden: str) -> None:
    assert visible(f"a{hidden}b") == f"a\u27e6U+{ord(hidden):04X}\u27e7b"


def test_a_terminal_prints_words_as_they_are() -> None:
    """Also brackets, which are markup elsewhere, and names of pictures; in tables, their titles and columns, too."""
    told = io.StringIO()
    terminal, words = Terminal(file=told), "a \x1b[2J\x1b[8m\u202eb\u200b\x9b0m [red]c[/red] [degF] :warning:"
    terminal.print(words)
    table = new_table(words, words)
    table.add_row(words)
    terminal.print(table)
    said = told.getvalue()
    assert not [c for c in said if unicodedata.category(c) in ACTS and c != "\n"]
    assert said.split("\n")[0] == (
        "a \u27e6U+001B\u27e7[2J\u27e6U+001B\u27e7[8m\u27e6U+202E\u27e7b\u27e6U+200B\u27e7\u27e6U+009B\u27e70m "
        "[red]c[/red] [degF] :warning:"
    )
    assert said.count("[degF]") == 4
