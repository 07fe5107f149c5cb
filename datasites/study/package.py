"""A study as files: `study.toml`, `features.toml`, `model.py`, and the one hash over all three.

The same bytes are read by the researcher before submitting and by each hospital at intake; whoever reads them gets
the same `StudyPackage` or the same error. Reading executes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.errors import InputError, parse_toml
from datasites.study.manifest import StudyTerms
from datasites.study.schema import DataModel
from datasites.study.visible import require_plain

#: Exactly these files make a study; anything beside them is refused at intake.
STUDY_FILES = ("study.toml", "features.toml", "model.py")
MAX_FILE_BYTES = 256 * 1024
#: What Python takes in the first two lines of a file for the name of its encoding (PEP 263).
_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-_.a-zA-Z0-9]+)")
_BOM = b"\xef\xbb\xbf"
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class StudyPackage:
    """The parsed terms, the data model and the untouched bytes of one study. Immutable by convention.

    `texts` is what the bytes say, decoded once: what is parsed is what people are shown.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        unexpected = sorted(set(files) - set(STUDY_FILES))
        if unexpected:
            raise InputError(
                f"{unexpected[0][:80]!r} does not belong in a study; it holds {', '.join(STUDY_FILES)} and nothing else"
            )
        for name in STUDY_FILES:
            if name not in files:
                raise InputError(f"{name}: no such file in the study; add it")
            if len(files[name]) > MAX_FILE_BYTES:
                raise InputError(f"{name}: more than {MAX_FILE_BYTES} bytes; people can't review that much")
        self.files = {name: bytes(files[name]) for name in STUDY_FILES}
        self.texts = {name: _text(name, data) for name, data in self.files.items()}
        self.source = self.texts["model.py"]
        self.study = parse_toml(self.texts["study.toml"], StudyTerms, "study.toml")
        self.data_model = parse_toml(self.texts["features.toml"], DataModel, "features.toml")
        if self.study.label != self.data_model.label.name:
            raise InputError(
                f"study.toml: label is {self.study.label!r}, features.toml has {self.data_model.label.name!r}; "
                "name the same column in both"
            )

    @classmethod
    def read(cls, folder: Path) -> StudyPackage:
        """Read a study folder; links and sub-folders are refused, hidden files and caches are passed over."""
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; a study is a folder with {', '.join(STUDY_FILES)}")
        files = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name == "__pycache__":
                continue
            if path.is_symlink() or not path.is_file():
                raise InputError(f"{path}: a link or folder; a study holds plain files only")
            # Of what is refused by its name or size, no more is read than shows that.
            with path.open("rb") as file:
                files[path.name] = file.read(MAX_FILE_BYTES + 1) if path.name in STUDY_FILES else b""
        try:
            return cls(files)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from error

    def require_plain(self) -> None:
        """Raise `InputError` where the terms or the data model hold a character that people don't see (`visible`)."""
        require_plain(self.study, "study.toml")
        require_plain(self.data_model, "features.toml")

    def digest(self) -> str:
        """Return the study hash: SHA-256 over the names and hashes of the three files, as canonical JSON."""
        return sha256_hex(canonical_json({name: sha256_hex(data) for name, data in self.files.items()}))


def _text(name: str, data: bytes) -> str:
    """Decode a file to the one text that everybody reads in it; raise `InputError` where tools would differ."""
    if control := _CONTROLS.search(data):
        raise InputError(
            f"{name}: holds binary data (byte {control[0][0]:#04x} at {control.start()}); a study is text that people "
            "can read"
        )
    if data.startswith(_BOM):
        raise InputError(f"{name}: begins with a byte order mark; save it as UTF-8 without one")
    for line in data.split(b"\n")[:2] if name.endswith(".py") else ():
        found = _CODING.match(line)
        if found and found[1].lower().replace(b"_", b"-") not in (b"utf-8", b"utf8"):
            raise InputError(
                f"{name}: a comment says that it is written in {found[1].decode()[:40]}; code is read as UTF-8: take "
                "the comment out and save it as UTF-8"
            )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
