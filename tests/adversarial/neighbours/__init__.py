"""A whole study on a table and on its neighbour, one process, everything fixed but the rows: see `laboratory`."""
