"""PySyft over the same store: peers, mocks, submissions and what was decided on them, with guards. Carries no round.

>>> from datasites.control.submissions import checked_job_name
>>> checked_job_name("heart-1")
'heart-1'
>>> checked_job_name("../../keys")
Traceback (most recent call last):
ValueError: submission name '../../keys': use 1 to 80 letters, digits, _ or -, and not v<number>
"""
