"""`python -m mnpo`."""

from mnpo.cli import main

main()
