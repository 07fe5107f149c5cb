"""What happened here: a hash-chained log that only grows, and what people entered as it tells it. Knows no case."""
