"""The data owner's side: a datasite. Never imports `researcher`; only the sandboxed worker imports torch."""
