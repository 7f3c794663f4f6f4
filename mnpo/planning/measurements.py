"""What policies are measured by on public benchmarks, and from which data."""

from __future__ import annotations

from collections.abc import Iterable

from mnpo.config.configuration import Config
from mnpo.config.evaluation import Benchmark, EvaluationProtocol
from mnpo.planning.files import Files
from mnpo.planning.oracles import NLTK
from mnpo.planning.policies import Policies


class Measurements:
    """The results that policies get on public benchmarks."""

    def __init__(self, config: Config, files: Files, policies: Policies) -> None:
        self.config, self.files, self.policies = config, files, policies

    @property
    def answered(self) -> list[Benchmark]:
        """The benchmarks that ask a judge: a job a policy and benchmark makes the answers, others judge them."""
        e = self.config.evaluation
        return [b for b in e.benchmarks if e.judged(b)]

    @property
    def harness(self) -> list[Benchmark]:
        """Those that need no judge and run by lm-eval: one job a policy measures them all."""
        return self._unjudged("harness")

    @property
    def evalscope(self) -> list[Benchmark]:
        """Those that need no judge and run by EvalScope: one job a policy measures them all."""
        return self._unjudged("evalscope")

    def _unjudged(self, protocol: EvaluationProtocol) -> list[Benchmark]:
        e = self.config.evaluation
        return [b for b in e.benchmarks if not e.judged(b) and e.protocol_of(b) == protocol]

    @property
    def measured(self) -> dict[str, tuple[str, str | None]]:
        """Every result that a policy gets on public benchmarks: its name in files -> benchmark and judge."""
        e = self.config.evaluation
        repeats = range(1, e.repeats + 1)
        judged = {self.files.judged(b, j, r): (b, j) for b in self.answered for j in e.judges for r in repeats}
        return {**{b: (b, None) for b in [*self.harness, *self.evalscope]}, **judged}

    def data(self, benchmarks: Iterable[str]) -> dict[str, str]:
        """The data of benchmarks: entry of `datasets` -> directory. IFEval also reads `nltk`, where there is one."""
        names = list(benchmarks)
        further = [NLTK] if "ifeval" in names and NLTK in self.config.datasets else []
        return {name: self.files.source("datasets", name) for name in [*names, *further]}

    def sources(self, benchmarks: Iterable[str]) -> list[str]:
        """Their directories."""
        return list(self.data(benchmarks).values())

    @property
    def evaluations(self) -> list[str]:
        """Every result on public benchmarks."""
        return [
            self.files.evaluation(policy, stem)
            for policy in self.policies.finals
            for stem, (_, judge) in self.measured.items()
            if judge or self.policies.has_files(policy)
        ]
