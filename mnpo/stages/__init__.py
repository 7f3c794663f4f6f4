"""One module a stage: paths and settings in, an artifact out.

Each has `Settings` and `run(settings, ...)`, from whose parameters and docstring the command line is made
(mnpo/cli/stages.py); it names the environment of envs/ that it runs in.
"""
