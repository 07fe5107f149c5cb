"""A study is three text files and one hash; anything else gets one clear line."""

from pathlib import Path

import pytest

from datasites.study.errors import InputError
from datasites.study.package import StudyPackage

HEART = Path(__file__).resolve().parents[2] / "scripts" / "heart_disease" / "study"


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in HEART.iterdir() if path.is_file()}


def test_the_heart_study_reads_the_same_from_folder_and_bytes() -> None:
    assert StudyPackage.read(HEART).digest() == StudyPackage(files()).digest()


@pytest.mark.parametrize("name", ["study.toml", "features.toml", "model.py"])
def test_one_changed_byte_changes_the_study_hash(name: str) -> None:
    changed = files()
    changed[name] += b"\n"
    assert StudyPackage(changed).digest() != StudyPackage(files()).digest()


def edit(name: str, old: str, new: str) -> dict[str, bytes]:
    changed = files()
    assert old.encode() in changed[name]
    changed[name] = changed[name].replace(old.encode(), new.encode(), 1)
    return changed


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda: {k: v for k, v in files().items() if k != "model.py"}, ["model.py", "no such file"]),
        (lambda: {**files(), "run.sh": b"curl"}, ["run.sh", "does not belong"]),
        (lambda: {**files(), "model.py": b"\0\1"}, ["model.py", "binary"]),
        (lambda: {**files(), "study.toml": b"name = "}, ["study.toml", "TOML"]),
        (lambda: {**files(), "study.toml": b"\xff"}, ["study.toml", "UTF-8"]),
        (lambda: edit("study.toml", "epsilon =", "epsilom ="), ["study.toml", "privacy.epsilo"]),
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
