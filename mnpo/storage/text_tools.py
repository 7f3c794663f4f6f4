"""What programs that check texts need: NLTK's sentence model, from the disk, and a language detector that says the same
every time.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

LANGDETECT_SEED = 0
"""Without one, langdetect guesses the language of the same text differently from call to call."""
BELOW = ("", "nltk_data", "packages")
HOW = (
    "on a machine with internet: python -m nltk.downloader -d DIRECTORY punkt_tab, and name the directory "
    "(datasets.nltk), or set NLTK_DATA"
)


def use(directories: Iterable[Path]) -> None:
    """Let NLTK look for its data in `directories`, and langdetect start from a seed."""
    import nltk
    from langdetect import DetectorFactory

    for directory in directories:
        for below in BELOW:
            path = (directory / below).absolute()
            if (path / "tokenizers").is_dir() and str(path) not in nltk.data.path:
                nltk.data.path.insert(0, str(path))
    DetectorFactory.seed = LANGDETECT_SEED


def has_sentence_model() -> bool:
    """Whether NLTK finds its model of English sentences."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True
