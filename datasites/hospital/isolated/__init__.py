"""Processes beside the datasite's own, in a sandbox and without its keys: they read untrusted files and price."""
