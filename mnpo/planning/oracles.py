"""Which oracles judge what, and which models and settings are behind them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from mnpo.config.blocks import ConfigError
from mnpo.config.configuration import Config
from mnpo.config.constraints import SENTENCES, of_row
from mnpo.config.oracles import COMPARED, SCORED, Judge, over_reference
from mnpo.errors import BadInput
from mnpo.planning.files import Files
from mnpo.planning.fits import AGAINST
from mnpo.storage import text_tools, user_code
from mnpo.storage.records import read_rows

NLTK = "nltk"  # the entry of `datasets` with NLTK's sentence splitter


class Oracles:
    """The oracles of a configuration. A name may be {oracle}@{policy}: win rates against that policy."""

    def __init__(self, config: Config, files: Files) -> None:
        self.config, self.files = config, files

    @property
    def of_evaluation(self) -> list[str]:
        """Every oracle that judges held-out responses."""
        return self.config.evaluation.asked

    @property
    def over_reference(self) -> list[str]:
        """Those of them that compare: their figure is a win rate over the reference's responses."""
        e = self.config.evaluation
        return over_reference(self.config.oracles, [e.oracle, *e.scores])

    def models(self, names: Iterable[str]) -> list[str]:
        """The models behind oracles, and behind all that these are made of."""
        models = [self.config.oracles[name].model for name in self.with_members(names)]
        return list(dict.fromkeys(m for m in models if m is not None))

    def sources(self, names: Iterable[str]) -> list[str]:
        """The directories that oracles read: of their models, and of NLTK's data where constraints are checked."""
        names = list(names)
        return [*self.files.model_sources(self.models(names)), *filter(None, [self._nltk(names)])]

    def _nltk(self, names: Iterable[str]) -> str | None:
        checking = any(self.config.oracles[name].kind == "constraints" for name in self.with_members(names))
        return self.files.source("datasets", NLTK) if checking and NLTK in self.config.datasets else None

    def with_members(self, names: Iterable[str]) -> list[str]:
        """Oracles, and all that they are made of, each once."""
        return self.config.with_members(name.partition(AGAINST)[0] for name in names)

    @property
    def asking(self) -> list[str]:
        """The oracles that ask a judge, or are made of one that does: they need the internet."""
        return [name for name in self.config.oracles if self.asks(name)]

    def asks(self, name: str) -> bool:
        """Whether an oracle asks a judge."""
        return bool(self.judges([name]))

    def judges(self, names: Iterable[str]) -> dict[str, Judge]:
        """The judges that oracles ask, by the oracles' names."""
        specs = {name: self.config.oracles[name] for name in self.with_members(names)}
        return {name: spec.judge for name, spec in specs.items() if spec.judge is not None}

    def settings(self, names: Iterable[str]) -> dict[str, Any]:
        """What a stage reads of the oracles `names`, of all that they are made of, and of the models these need."""
        names = list(names)
        specs = {name: self.config.oracles[name] for name in self.with_members(names)}
        files = {file: digest for name in specs for file, digest in self.functions.get(name, {}).items()}
        return {
            "oracles": {name: spec.model_dump(exclude_none=True) for name, spec in specs.items()},
            "models": {spec.model: self.files.made_of(spec.model) for spec in specs.values() if spec.model is not None},
            **({"functions": files} if files else {}),
            **({"nltk": nltk} if (nltk := self._nltk(names)) else {}),
        }

    def require_constraints(self) -> None:
        """Whether constraints that need NLTK's sentence model will have it. Raises ConfigError."""
        for name, spec in self.config.oracles.items():
            needing = [c["id"] for c in spec.constraints or [] if c["id"] in SENTENCES]
            if needing and NLTK not in self.config.datasets and not os.environ.get("NLTK_DATA"):
                raise ConfigError(
                    f"oracles.{name}: {needing[0]} needs NLTK's punkt_tab, which finds sentences; {text_tools.HOW}"
                )

    def require_constraints_of_rows(self) -> None:
        """Whether the constraints of the rows of a file of prompts can be verified. Raises ConfigError."""
        checking = [
            name for name, spec in self.config.oracles.items() if spec.kind == "constraints" and not spec.constraints
        ]
        if not checking or self.config.prompts.source != "file":
            return
        for number, row in enumerate(read_rows(self.config.prompts.path or ""), 1):
            try:
                of_row(row)
            except ValueError as error:
                raise ConfigError(f"oracles.{checking[0]}: {self.config.prompts.path}: row {number}: {error}") from None

    @cached_property
    def functions(self) -> dict[str, dict[str, str]]:
        """Oracle of kind `function` -> the user's files behind it, and the digests of their code, as they are now.

        Raises:
            ConfigError: a file that is not there or is no Python, a function that it lacks, or that wants other
                arguments than there are.
        """
        found = {}
        for name, spec in self.config.oracles.items():
            if spec.file is None or spec.function is None:
                continue
            try:
                wanted = user_code.signature(spec.file, spec.function)
                if wanted is not None:
                    given = COMPARED if spec.compare else SCORED
                    user_code.arguments(f"{spec.file}: {spec.function}", wanted, given)
                found[name] = user_code.digests(spec.file)
            except BadInput as error:
                raise ConfigError(f"oracles.{name}: {error}") from None
        return found
