"""The approval console: web pages over the same functions as the command line. It decides nothing of its own.

>>> from datasites.hospital.console.code import diff_lines
>>> for line in diff_lines("rounds = 15\\nsteps = 10\\n", "rounds = 30\\nsteps = 10\\n", context=0):
...     print(line.kind, line.old, line.new, line.text)
del 1 0 rounds = 15
add 0 1 rounds = 30
"""
