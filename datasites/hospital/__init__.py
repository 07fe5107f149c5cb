"""The data owner's side: a datasite. Never imports `researcher`; only the sandboxed worker imports torch.

>>> from datasites.hospital.ticks import ticks_for
>>> ticks_for(1.0)  # of 0.05 seconds, for a round whose work took a second when it was measured
36
"""
