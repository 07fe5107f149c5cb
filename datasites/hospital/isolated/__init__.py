"""Processes beside the datasite's own, in a sandbox and without its keys: they read untrusted files and price.

>>> import io
>>> from datasites.hospital.isolated.frames import framed, packed, unpacked, whole
>>> pipe = io.BytesIO(framed(packed(b"12 rows read", {})))
>>> unpacked(whole(pipe.read))  # a message and arrays; reading it runs no code of the other end
(b'12 rows read', {})
>>> unpacked(b"anything else")
Traceback (most recent call last):
datasites.hospital.isolated.frames.BadFrame: SafetensorError
"""
