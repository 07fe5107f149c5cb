"""What strangers wrote does nothing to a page or a terminal but show."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasites.study.errors import InputError
from datasites.study.identity import Identity
from datasites.study.package import StudyPackage
from datasites.study.roster import Roster, RosterEntry
from datasites.study.visible import visible
from tests.study.studies import edit, files

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


TITLE = "Coronary artery disease from routine findings, four hospitals"


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("study.toml", f'"{TITLE}"', r'"Heart\u001b[2K disease"', "study.toml, title: character 6 is U+001B"),
        ("study.toml", f'"{TITLE}"', '"Heart\u202e disease"', "title: character 6 is U+202E"),
        ("study.toml", f'"{TITLE}"', r'"Heart\ndisease"', "title: character 6 is U+000A"),
        ("study.toml", f'"{TITLE}"', '"Heart \u200ddisease"', "title: character 7 is U+200D"),
        ("study.toml", f'"{TITLE}"', '"Heart\u200d"', "title: character 6 is U+200D"),
        ("study.toml", "hidden = 0", 'hidden = "a\u200bb"', "model, hidden: character 2 is U+200B"),
        ("study.toml", "hidden = 0", '"hid\u2066den" = 0', "a key: character 4 is U+2066"),
        ("features.toml", 'unit = "', 'unit = "\u2028', "features.toml, features"),
    ],
)
def test_a_study_that_holds_what_people_do_not_see_is_refused(name: str, old: str, new: str, words: str) -> None:
    package = StudyPackage(edit(name, old, new))  # what was frozen before still reads
    with pytest.raises(InputError) as caught:
        package.require_plain()
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_letters_of_every_script_and_lines_of_a_description_are_agreed_on() -> None:
    StudyPackage(files()).require_plain()
    persian, hindi = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937"
    for title in (persian, hindi, "\u5fc3\u81d3\u75c5", "a\u00a0b"):
        StudyPackage(edit("study.toml", f'"{TITLE}"', f'"{title}"')).require_plain()


def test_a_party_with_a_name_that_people_do_not_see_is_not_pinned() -> None:
    key = Identity.generate("a@a.example").public_key
    entry = RosterEntry(organisation="Clinic\u202eA", email="a@a.example", role="hospital", public_key=key)
    with pytest.raises(InputError, match="organisation: character 7 is U\\+202E"):
        Roster().pin(entry)
    assert Roster(entries=(entry,)).get("a@a.example") == entry  # whoever pinned it before goes on
