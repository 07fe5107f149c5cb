"""What happened here: a hash-chained log that only grows, and what it records of entries by people. Knows no case.

>>> import tempfile
>>> from pathlib import Path
>>> from datasites.hospital.audit.log import AuditLog, verify_log
>>> from datasites.study.identity import Identity
>>> path, hospital = Path(tempfile.mkdtemp(), "audit.jsonl"), Identity.generate("datasite@a.example.org")
>>> head = AuditLog(path, hospital).append("approved", person="ann.lee")
>>> verify_log(path, hospital.public_key).ok
True
>>> edited = path.write_bytes(path.read_bytes().replace(b"ann.lee", b"eve.lee"))
>>> verify_log(path, hospital.public_key).ok
False
"""
