"""From a submission to a decision: frozen, examined, checked by policies, reviewed by two people. Runs no round.

>>> import tempfile
>>> from pathlib import Path
>>> from datasites.hospital.cases.freeze import freeze, open_frozen
>>> submitted = {path.name: path.read_bytes() for path in Path("scripts/heart_disease/study").iterdir()}
>>> folder = Path(tempfile.mkdtemp())
>>> study = freeze(submitted, folder)
>>> open_frozen(folder, study.digest()).study.name  # what people read, and what alone will run
'heart-disease'
>>> freeze(submitted | {"setup.py": b"import os"}, folder)
Traceback (most recent call last):
datasites.study.errors.InputError: submission: 'setup.py' does not belong in a study; send study.toml, features.toml, \
model.py only
"""
