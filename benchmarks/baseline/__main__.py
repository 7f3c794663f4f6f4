"""`python -m benchmarks.baseline STAGE ...`: the project's command line, with the plain way of four stages."""

from benchmarks import baseline
from mnpo import cli

baseline.install()
cli.main()
