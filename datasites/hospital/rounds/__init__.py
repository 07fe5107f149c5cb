"""What an approved study does here: epochs, rounds, releases, letters, its end. Decides no policy.

>>> from dataclasses import replace
>>> from datasites.hospital.rounds.round_keys import RoundKeys
>>> keys = RoundKeys(secret=bytes(32), manifest="5" * 64, approval="a" * 64, records="0" * 64)
>>> keys.key("training") == replace(keys).key("training")  # work that is repeated adds the same noise
True
>>> keys.key("training") == replace(keys, records="1" * 64).key("training")  # once a patient has withdrawn
False
"""
