"""Datasites: hospitals train one model together without sharing records.

Rooms: `study` (what all parties agree on), `privacy` (what a patient can lose), `secagg` (hides one hospital in the
sum), `transport` (how bytes travel), `control` (PySyft: peers, submissions and decisions), `enclave` (where submitted
code is judged and run), `aggregator` (sums and the next model), `hospital` (the data owner's side), `researcher` (the
data scientist's side) and `cli` (one command for people). README has a picture of them. Numbers in brackets, such as
(I6), are those of INVARIANTS.md.
"""
