"""Who may do what: accounts and sign-ins, the roster of parties, agreements. Looks at no patient's row.

>>> import tempfile
>>> from pathlib import Path
>>> from datasites.hospital.database import connect
>>> home = Path(tempfile.mkdtemp())
>>> settings = 'organisation = "A"\\nemail = "datasite@a.example.org"\\nstore = "store"'
>>> home.joinpath("datasite.toml").write_text(settings) > 0
True
>>> connect(home).settings.organisation  # a process has one home
'A'
>>> from datasites.hospital.people.accounts import add_person
>>> add_person("ann.lee", "steward", "ann.lee@a.example.org")
Person(name='ann.lee', email='ann.lee@a.example.org', role='steward', active=True)
>>> add_person("al", "privacy_officer", "ann.lee@a.example.org")
Traceback (most recent call last):
datasites.hospital.people.accounts.PersonError: person al: ann.lee@a.example.org is entered under another name; \
each person is entered once
"""
