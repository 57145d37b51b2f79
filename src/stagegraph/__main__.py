"""`python -m stagegraph`."""

from .cli import main

main()
