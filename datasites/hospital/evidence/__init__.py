"""What an auditor gets: a signed bundle, and what verifies it by itself. Writes nothing into the home.

>>> import json
>>> from pathlib import Path
>>> from datasites.hospital.evidence.verify_bundle import verify
>>> bundle = Path("tests/hospital/evidence/bundles/format_3.zip")
>>> key = json.loads(bundle.with_suffix(".json").read_text())["public_key"]  # as the hospital has told it
>>> all(check.ok for check in verify(bundle, key))
True
>>> next(check.name for check in verify(bundle, "0" * 64) if not check.ok)
'signature'
"""
