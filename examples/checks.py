"""What checkers of text need beside code, out of wheels of the package index: `python -m examples.checks models/nltk`.

NLTK's model of English sentences and its stop words lie in the wheel of llama-index-core; nothing of that is installed.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from examples.wheels import cache, command, fetch, making

NLTK = {"llama_index_core-0.14.25-py3-none-any.whl": "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1"}
INSIDE = "llama_index/core/_static/nltk_cache/"
WANTED = ("tokenizers/punkt_tab/english/", "corpora/stopwords/english")


def make(target: Path) -> None:
    """Write the directory `target`, as NLTK looks for its data: whole or not at all.

    Raises:
        BadInput: it exists already, or the wheel cannot be had.
    """
    with making(target) as work, zipfile.ZipFile(*fetch(NLTK, cache())) as packed:
        wanted = tuple(INSIDE + name for name in WANTED)
        packed.extractall(work, [name for name in packed.namelist() if name.startswith(wanted)])
        os.replace(Path(work, INSIDE), target)


if __name__ == "__main__":
    command(make, __doc__)
