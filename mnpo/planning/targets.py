"""Targets of the workflow: tables and figures, and the results that each is made of."""

from __future__ import annotations

from typing import get_args

from mnpo.config.blocks import REFERENCE, ConfigError
from mnpo.config.configuration import Config
from mnpo.config.evaluation import Target
from mnpo.planning import paper_tables
from mnpo.planning.files import HELDOUT, Files
from mnpo.planning.fits import AGAINST, replica
from mnpo.planning.measurements import Measurements
from mnpo.planning.policies import Policies

TABLES = ("main", "families", "wins")  # of held-out prompts
TABLE_ENDINGS = ("csv", "md", "html")
PAPER_TABLE_ENDINGS = ("csv", "md", "tex", "html")
PAPER_PARTS = ("significance", "gaps")  # which differences are more than noise: ours, and the published
EXACT = ("theory", "study")  # of exact games: they need no policy
FIGURES = ("win_rate", "length", "families", "oracles", "training", "win_matrix")


class Targets:
    """What `snakemake NAME` can make."""

    def __init__(self, config: Config, files: Files, policies: Policies, measurements: Measurements) -> None:
        self.config, self.files, self.policies, self.measurements = config, files, policies, measurements

    @property
    def names(self) -> list[str]:
        """Targets that several rules, or several jobs of one rule, make."""
        return [*paper_tables.TABLES, "policies", "heldout", "figures"]

    @property
    def of_paper(self) -> list[str]:
        """The tables of the paper."""
        return list(paper_tables.TABLES)

    def published(self, table: str) -> str:
        """The published figures of a table of the paper; they are in git."""
        return f"results/paper/{paper_tables.TABLES[table].file}"

    def rows(self, table: str) -> dict[str, list[str]]:
        """The rows of a table of the paper that are configured and measured -> their policies, one a seed."""
        rows = {}
        for row, name in self.config.tables.rows.get(table, {}).items():  # type: ignore[call-overload]
            seeds = range(1, self.config.seeds + 1)
            policies = (
                [self.policies.replicas[replica(name, s)][-1] for s in seeds] if name in self.config.runs else [name]
            )
            if policies[0] in self.policies.finals:
                rows[row] = policies
        return rows

    def judges(self, table: str) -> dict[str, str]:
        """The paper's name of a judge -> ours. Where the paper has one judge, ours is the first."""
        judges = self.config.evaluation.judges
        if "judge" in paper_tables.TABLES[table].key:
            return {self.config.judges[judge].label or judge: judge for judge in judges}
        return {paper_tables.JUDGE: judges[0]} if judges else {}

    def evaluations(self, table: str) -> list[str]:
        """The results that a table of the paper is made of: those that are configured."""
        benchmarks = {column.benchmark for column in paper_tables.TABLES[table].columns}
        judges = set(self.judges(table).values())
        return [
            self.files.evaluation(policy, stem)
            for policy in dict.fromkeys(p for policies in self.rows(table).values() for p in policies)
            for stem, (benchmark, judge) in self.measurements.measured.items()
            if benchmark in benchmarks and (judge in judges or (judge is None and self.policies.has_files(policy)))
        ]

    @property
    def trained(self) -> list[str]:
        """The last policy of every run, and the reference where it is fine-tuned: all without measuring."""
        reference = [REFERENCE] if self.config.reference.sft else []
        return [self.files.policy(policy) for policy in [*reference, *self.policies.lasts]]

    @property
    def heldout(self) -> list[str]:
        """The printed tables of held-out prompts."""
        return [f"{self.files.table(name)}.{ending}" for name in TABLES for ending in TABLE_ENDINGS]

    def comparison(self, table: str) -> list[str]:
        """The files of a table of the paper."""
        further = [f"{self.files.table(table)}-{part}.{e}" for part in PAPER_PARTS for e in TABLE_ENDINGS]
        return [*(f"{self.files.table(table)}.{e}" for e in PAPER_TABLE_ENDINGS), *further]

    @property
    def exploit_scores(self) -> list[str]:
        """Win rates on held-out prompts of those against these, shard by shard. Raises ConfigError for none."""
        if not self.policies.exploited:
            raise ConfigError(
                "exploitability: whose? The configuration has no such block; configs/exploitability.yaml has"
            )
        return [
            file
            for policy, oracle in self.policies.exploited.items()
            for exploiter in self.policies.exploiters[policy]
            for file in self.files.score_shards(exploiter, HELDOUT, f"{oracle}{AGAINST}{policy}")
        ]

    def of(self, name: str) -> list[str]:
        """The files behind a target of the workflow."""
        if name in paper_tables.TABLES:
            return self.comparison(name)
        if name == "policies":
            return self.trained
        if name in EXACT:
            return [f"{self.files.table(name)}.csv", *(f"{self.files.figure(name)}.{e}" for e in ("svg", "png"))]
        if name == "figures":
            return [f"{self.files.figure(f)}.{ending}" for f in FIGURES for ending in ("svg", "png")]
        if name == "heldout":
            return self.heldout
        if name == "examples":
            return [f"{self.files.table(name)}.html"]
        if name not in get_args(Target):
            raise KeyError(name)
        return [f"{self.files.table(name)}.{ending}" for ending in TABLE_ENDINGS]
