"""What can go wrong that a person can mend: one message, one exit code each, no traceback."""

from __future__ import annotations


class BadInput(ValueError):
    """An input, setting or file that a stage refuses; the message names it and the remedy. Exit code 3."""

    exit_code = 3


class Diverged(ArithmeticError):
    """Training met a loss or gradient that is not finite. Exit code 4."""

    exit_code = 4
