"""Decisions of two people that are not about a case: wider budgets, undone withdrawals, what a restore has lost.

>>> import tempfile
>>> from pathlib import Path
>>> from datasites.hospital.database import connect
>>> home = Path(tempfile.mkdtemp())
>>> settings = 'organisation = "A"\\nemail = "datasite@a.example.org"\\nstore = "store"'
>>> home.joinpath("datasite.toml").write_text(settings) > 0
True
>>> connect(home).settings.organisation  # a process has one home
'A'
>>> from datasites.hospital.proposals.restored import LostStudy
>>> lost = LostStudy(
...     study="5" * 64, population="cardiology", noise_multiplier=2, sampling_rate=0.1, steps=150, rounds=15,
...     evaluation_multiplier=4,
... )
>>> lost.most_releases  # that a restored log may lack: of each round, and of the final evaluation
16
>>> [event.count for [event] in lost.account(both_sides=False).committed("training")]  # all of it is charged
[150]
"""
