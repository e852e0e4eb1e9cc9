"""`python -m valence`."""

from valence.cli.main import main

main()
