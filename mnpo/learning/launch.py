"""`python -m mnpo.learning.launch N -m mnpo ...`: `python -m mnpo ...` as N ranks on this machine, by torchrun.

torchrun's own command line takes options of the module that it starts, such as --start and --log, for abbreviations of
its own; here it gets them past its parser.
"""

import sys

from torch.distributed.run import get_args_parser, run


def main() -> None:
    """Start the ranks and wait for them."""
    _, ranks, _, module, *arguments = sys.argv
    settings = get_args_parser().parse_args(["--standalone", f"--nproc-per-node={ranks}", "-m", module])
    settings.training_script_args = arguments
    run(settings)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
