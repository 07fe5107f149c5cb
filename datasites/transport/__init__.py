"""How bytes travel: the shared store, and the mailroom on it, which carries signed and encrypted letters.

Uses fsspec, and `study`; knows nothing of models, masks, approvals or PySyft.

    >>> import tempfile
    >>> from datasites.transport.store import Store
    >>> store = Store(tempfile.mkdtemp())
    >>> store.put("mail/letter", b"sealed")
    >>> store.list("mail"), store.get("mail/letter")
    (['letter'], b'sealed')
"""
