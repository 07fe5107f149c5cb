"""From a submission to a decision: frozen, examined, checked by policies, reviewed by two people. Runs no round.

>>> import tempfile
>>> from pathlib import Path
>>> from datasites.hospital.cases.freeze import freeze, open_frozen
>>> from datasites.study.package import STUDY_FILES
>>> submitted = {name: Path("scripts/heart_disease/study", name).read_bytes() for name in STUDY_FILES}
>>> folder = Path(tempfile.mkdtemp())
>>> study = freeze(submitted, folder)
>>> open_frozen(folder, study.digest()).study.name  # what people read, and what alone will run
'heart-disease'
>>> freeze(submitted | {"setup.py": b"import os"}, folder)
Traceback (most recent call last):
datasites.study.errors.InputError: 'setup.py' does not belong in a study; it holds study.toml, features.toml, model.py \
and nothing else
"""
