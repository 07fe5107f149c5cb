"""How bytes travel: the store, the mailroom on it, and syft's connection over it.

Uses fsspec and syft, and `study`; knows nothing of models, masks or approvals.
"""
