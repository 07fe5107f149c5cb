"""A study is three text files and one hash; anything else gets one clear line."""

from pathlib import Path

import pytest

from datasites.study.errors import InputError
from datasites.study.package import StudyPackage
from tests.study.studies import edit, files

HEART = Path(__file__).resolve().parents[2] / "scripts" / "heart_disease" / "study"


def test_the_heart_study_reads_the_same_from_folder_and_bytes() -> None:
    assert StudyPackage.read(HEART).digest() == StudyPackage(files()).digest()


@pytest.mark.parametrize("name", ["study.toml", "features.toml", "model.py"])
def test_one_changed_byte_changes_the_study_hash(name: str) -> None:
    changed = files()
    changed[name] += b"\n"
    assert StudyPackage(changed).digest() != StudyPackage(files()).digest()


def many_columns(features: int, levels: int) -> dict[str, bytes]:
    """What a file of features within its size could ask for."""
    words = ",".join(f'"{number:x}"' for number in range(levels))
    category = '[[features]]\nname="f{}"\ntype="category"\nlevels=[{}]\n'
    label = '[label]\nname="disease"\ntype="boolean"\n'
    text = label + "".join(category.format(place, words) for place in range(features))
    return {**files(), "features.toml": text.encode()}


def option(value: str) -> dict[str, bytes]:
    return edit("study.toml", "hidden = 0", f"hidden = {value}")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda: {k: v for k, v in files().items() if k != "model.py"}, ["model.py", "no such file"]),
        (lambda: {**files(), "run.sh": b"curl"}, ["run.sh", "does not belong"]),
        (lambda: {**files(), "../../keys": b""}, ["'../../keys' does not belong"]),
        (lambda: {**files(), "a" * 500: b""}, ["'" + "a" * 80 + "' does not belong"]),
        (lambda: {**files(), "\u202e\n": b""}, [r"'\u202e\n' does not belong"]),
        (lambda: {**files(), "model.py": b"\0\1"}, ["model.py", "binary"]),
        (lambda: {**files(), "model.py": b"x = 1\x1b[2K"}, ["model.py", "binary", "0x1b"]),
        (lambda: {**files(), "model.py": b"\xef\xbb\xbfx = 1"}, ["model.py", "byte order mark"]),
        (lambda: {**files(), "model.py": b"# caf\xe9"}, ["model.py", "UTF-8"]),
        (lambda: {**files(), "model.py": b"# vim: set fileencoding=utf-7 :\nx = 1"}, ["model.py", "utf-7", "as UTF-8"]),
        (lambda: {**files(), "model.py": b"#!/x\n# -*- coding: rot13 -*-\n"}, ["model.py", "rot13"]),
        (lambda: {**files(), "study.toml": b"name = "}, ["study.toml", "TOML"]),
        (lambda: {**files(), "study.toml": b"\xff"}, ["study.toml", "UTF-8"]),
        (
            lambda: edit("study.toml", "epsilon =", "epsilom ="),
            ["study.toml", "privacy.epsilom", "did you mean epsilon?", "known: clip, delta, divisor, epsilon, mode"],
        ),
        (lambda: edit("study.toml", "rounds = ", "rounds = true #"), ["study.toml", "rounds", "integer", "True"]),
        (lambda: edit("study.toml", "rounds = ", 'rounds = "15" #'), ["study.toml", "rounds", "integer", "'15'"]),
        (lambda: edit("study.toml", "rounds = ", "rounds = 15.0 #"), ["study.toml", "rounds", "integer", "15.0"]),
        (lambda: edit("study.toml", "clip = ", "clip = nan #"), ["study.toml", "finite"]),
        (lambda: edit("study.toml", "clip = ", "clip = true #"), ["study.toml", "privacy.clip", "number"]),
        (
            lambda: edit("study.toml", "learning_rate = ", "learning_rate = 1e-320 #"),
            ["learning_rate", "0.000000000001"],
        ),
        (
            lambda: edit("features.toml", "scale = ", "scale = 1e-320 #"),
            ["features.toml", "scale", "0.000000000000001"],
        ),
        (
            lambda: edit("features.toml", "scale = ", "scale = 1e-10 #"),
            ["features.toml", "scale", "beyond 1.04858e+06"],
        ),
        (lambda: edit("features.toml", "indicator = true", "indicator = 1"), ["features.toml", "indicator", "boolean"]),
        (lambda: many_columns(9, 4000), ["features.toml", "35991 encoded columns", "the most are 4096"]),
        (lambda: many_columns(1, 36_018), ["features.toml", "levels", "at most 4096"]),
        (lambda: {**files(), "study.toml": b".".join([b"a"] * 100_000) + b" = 1"}, ["line 1", "more than 16 parts"]),
        (lambda: {**files(), "features.toml": b"x = 1\n[" + b" . ".join([b'"a"'] * 17) + b"]"}, ["line 2", "parts"]),
        (lambda: option("{" + ".".join(["'b'"] * 17) + " = 1}"), ["study.toml", "more than 16 parts"]),
        (
            lambda: option("['''a'b''', {" + ".".join(["c"] * 17) + " = 1}, 'd']"),
            ["study.toml", "more than 16 parts"],
        ),
        (
            lambda: option('["""a"b\\""""", {' + ".".join(["c"] * 17) + ' = 1}, "d"]'),
            ["study.toml", "more than 16 parts"],
        ),
        (lambda: option("[[[[1]]]]"), ["study.toml", "model", "nested more than 3 deep"]),
        (lambda: option(str([0] * 2000)), ["study.toml", "model", "more than 1000 values"]),
        (lambda: option("1" * 400), ["study.toml", "model", "beyond 1e+15"]),
        (lambda: option(repr("a" * 2000)), ["study.toml", "model", "1000 characters"]),
        (lambda: edit("study.toml", 'kind = "transport"', 'kind = "storage"'), ["services", "transport"]),
        (lambda: edit("features.toml", "low = 20", "low = 200"), ["features.toml", "age", "range"]),
        (lambda: edit("study.toml", 'label = "disease"', 'label = "death"'), ["label", "disease", "death"]),
    ],
)
def test_bad_input_names_file_key_and_rule(broken, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        StudyPackage(broken())
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_quoted_value_is_cut_and_a_whole_number_may_stand_for_a_fraction() -> None:
    with pytest.raises(InputError, match=r"found 'a{199}\.\.\.$"):
        StudyPackage(edit("study.toml", 'mode = "local"', f'mode = "{"a" * 5000}"'))
    assert StudyPackage(edit("study.toml", "epsilon = 3.0", "epsilon = 3")).study.privacy.epsilon == 3.0


def test_comments_and_texts_may_hold_any_number_of_points() -> None:
    words = ".".join(["a"] * 20)
    package = StudyPackage(edit("study.toml", "rounds = ", f"# it's {words}\nrounds = "))
    assert words in package.texts["study.toml"]


def test_what_is_parsed_is_what_is_kept_as_text() -> None:
    words = "# Koronare Herzkrankheit, \u0438\u0448\u0435\u043c\u0438\u044f\n"
    package = StudyPackage({**files(), "model.py": words.encode() + files()["model.py"]})
    assert package.source == package.texts["model.py"] == words + files()["model.py"].decode()
    assert {name: text.encode() for name, text in package.texts.items()} == package.files


def test_links_in_a_study_folder_are_refused(tmp_path: Path) -> None:
    for name, data in files().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "model.py").unlink()
    (tmp_path / "model.py").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="link"):
        StudyPackage.read(tmp_path)


def test_a_file_too_large_to_review_is_refused_without_reading_it(tmp_path: Path) -> None:
    for name, data in files().items():
        (tmp_path / name).write_bytes(data)
    with (tmp_path / "model.py").open("ab") as file:
        file.truncate(2**40)  # sparse: reading it whole would end the process
    with pytest.raises(InputError, match=r"model.py: more than 262144 bytes"):
        StudyPackage.read(tmp_path)
    (tmp_path / "model.py").rename(tmp_path / "weights.bin")
    with pytest.raises(InputError, match=r"'weights.bin' does not belong"):
        StudyPackage.read(tmp_path)
