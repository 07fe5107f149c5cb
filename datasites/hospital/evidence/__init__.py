"""What an auditor gets: a signed bundle, and what verifies it by itself. Writes nothing into the home."""
