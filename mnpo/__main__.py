"""`python -m mnpo`."""

from mnpo.warm import client

forked = client.begin()

from mnpo.cli import main  # noqa: E402  typer and pydantic are not for a command that somebody else runs

main(forked)
