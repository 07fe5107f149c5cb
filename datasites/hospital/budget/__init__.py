"""What a population's patients have lost and may still lose: priced, charged, gated. Nothing here is refunded.

>>> import tempfile
>>> from pathlib import Path
>>> from datasites.hospital.database import connect
>>> home = Path(tempfile.mkdtemp())
>>> settings = 'organisation = "A"\\nemail = "datasite@a.example.org"\\nstore = "store"'
>>> home.joinpath("datasite.toml").write_text(settings) > 0
True
>>> connect(home).settings.organisation  # a process has one home
'A'
>>> from dataclasses import replace
>>> from datasites.hospital.budget.balances import PrivacyCost, StudyAccount, prices_of
>>> from datasites.privacy.events import release
>>> study, round = release(2.0, 0.1, count=100), release(2.0, 0.1, count=10)
>>> account = StudyAccount(
...     reserved=prices_of({"training": PrivacyCost(study, study)}),  # at the approval
...     charged={1: prices_of({"training": PrivacyCost(round, round)})},  # before a round
... )
>>> [event.count for [event] in account.committed("training")]
[100]
>>> [event.count for [event] in replace(account, released=True).committed("training")]  # once the study is over
[10]
"""
