"""What happened here: a hash-chained log that only grows, and what it records of entries by people. Knows no case."""
