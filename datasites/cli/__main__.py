"""`python -m datasites.cli`."""

from datasites.cli import main

main()
