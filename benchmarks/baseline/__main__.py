"""`python -m benchmarks.baseline STAGE ...`: the project's command line, with the plain way of four stages."""

from importlib import import_module

from benchmarks.baseline import STAGES
from mnpo import cli

for name, plain in STAGES.items():
    import_module(f"mnpo.stages.{name}").run = plain  # type: ignore[attr-defined]
cli.main()
