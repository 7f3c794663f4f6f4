"""A SLURM of two nodes with eight fake GPUs each, on one machine: `python tests/slurm/cluster.py start|stop|status`.

munge, MariaDB, slurmdbd, slurmctld and two slurmd from Debian's packages run as root out of one temporary directory, on
ports and sockets of their own, beside whatever SLURM the machine has. `eval $(python tests/slurm/cluster.py env)` puts
this cluster's sbatch, squeue, ... first in the PATH.
"""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

DIRECTORY = Path("/tmp/mnpo-slurm")
NODES = ("n1", "n2")
GPUS = 8  # of each node
PACKAGES = "slurm-wlm slurmdbd munge mariadb-server"
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sacctmgr", "sbatch")
COMMANDS = ("sbatch", "srun", "scancel", "squeue", "sacct", "sacctmgr", "scontrol", "sinfo", "sshare")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# Nodes declare more than the machine has (config_overrides): many tiny jobs fit, and so do the paper's requests.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=10
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={directory}/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
AccountingStorageEnforce=associations,limits,qos
JobAcctGatherType=jobacct_gather/none
NodeName=DEFAULT CPUs=64 RealMemory=2000000 Gres=gpu:h100:{gpus}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} Feature=big
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} Feature=small
PartitionName=cpu Nodes=n1,n2 Default=YES MaxTime=60 DefaultTime=5
PartitionName=gpu Nodes=n1,n2 MaxTime=120 DefaultTime=5
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser=root
PidFile={directory}/slurmdbd.pid
LogFile={directory}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
"""

# The plugin's looks at its jobs come 10 s later each while none ends, which is longer than a job of these tests.
SNAKEMAKE = """\
#!{python}
from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

Executor.next_seconds_between_status_checks = property(lambda executor: 3, lambda executor, seconds: None)
main()
"""


class Unavailable(RuntimeError):
    """This machine cannot run the cluster; the message says what is missing."""


class Cluster:
    """The cluster in a directory. Starting stops whatever an earlier, killed start left there."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory
        self.path = f"{directory}/bin:{PATH}"
        self.environment = os.environ | {"PATH": self.path}
        self._lock: IO[str] | None = None

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """What a SLURM command prints."""
        result = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and result.returncode != 0:
            raise RuntimeError(
                f"{shlex.join(command)}: exit code {result.returncode}: {result.stderr or result.stdout}"
            )
        return result.stdout

    def start(self) -> None:
        """Start every daemon and wait until both nodes are idle: some ten seconds. Raises Unavailable."""
        require()
        self._take_lock()
        self.stop()
        directory = self.directory
        for name in ("state", "munge", "dev", "bin"):
            (directory / name).mkdir(parents=True)
        directory.chmod(0o755)
        ports = dict(zip(("slurmctld", "slurmdbd", "mariadb", *NODES), _free_ports(3 + len(NODES)), strict=True))
        values = {**ports, "directory": directory, "host": platform.node().split(".")[0], "gpus": GPUS}
        values["password"] = secrets.token_hex()
        for index in range(GPUS):
            os.mknod(directory / f"dev/gpu{index}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        self._write("slurm.conf", SLURM_CONF.format(**values))
        self._write("slurmdbd.conf", SLURMDBD_CONF.format(**values), 0o600)
        self._write("gres.conf", f"NodeName=n[1-2] Name=gpu Type=h100 File={directory}/dev/gpu[0-{GPUS - 1}]\n")
        # Commands that know their cluster: the job step of Snakemake's plugin drops SLURM_CONF from the environment.
        for name in COMMANDS:
            program = shutil.which(name, path=PATH)
            self._write(f"bin/{name}", f'#!/bin/sh\nSLURM_CONF={directory}/slurm.conf exec {program} "$@"\n', 0o755)
        self._write("bin/snakemake", SNAKEMAKE.format(python=sys.executable), 0o755)
        try:
            self._start_munge()
            self._start_database(ports["mariadb"], values["password"])
            self._daemon("slurmdbd", "slurmdbd", "-D")
            self._until(lambda: "Cluster" in self.run("sacctmgr", "show", "cluster", check=False), "slurmdbd")
            self._accounts()
            self._daemon("slurmctld", "slurmctld", "-D", "-c")
            self._until(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld")
            for node in NODES:
                self.start_node(node)
            self._until(lambda: self.states() == dict.fromkeys(NODES, "idle"), "idle nodes")
        except BaseException:
            self.stop()
            raise

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._daemon(f"slurmd.{node}", "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """What a power cut does: SIGKILL for the slurmd of a node and everything that runs under it."""
        victims = {self.pids()[f"slurmd.{node}"]}
        for pid in self._jobs():
            if f"SLURMD_NODENAME={node}" in _environment(pid):
                victims |= {pid, *descendants(pid), *_ancestors(pid, "slurmstepd")}
        for pid in victims:
            _kill(pid)

    def states(self) -> dict[str, str]:
        """The state of each node."""
        lines = self.run("sinfo", "-h", "-N", "-p", "cpu", "-o", "%N %T", check=False).splitlines()
        return dict(line.split() for line in lines)

    def stop(self) -> None:
        """Stop every daemon, and every job, of this directory; remove the directory."""
        if not self.directory.exists():
            return
        jobs = self._jobs()
        victims = {p for pid in jobs for p in (pid, *descendants(pid))} | set(self.pids().values())
        for pid in victims:
            _kill(pid)
        self._until(lambda: not any(alive(pid) for pid in victims), "the end of the daemons")
        shutil.rmtree(self.directory)

    def pids(self) -> dict[str, int]:
        """The process of each daemon that lives."""
        found = {}
        for file in self.directory.glob("*.daemon"):
            pid, started = file.read_text().split()
            if _started(int(pid)) == started:
                found[file.stem] = int(pid)
        return found

    def _jobs(self) -> list[int]:
        """The processes of jobs, and SLURM's own about them: slurmd tells each where its cluster is."""
        return [pid for pid in _processes() if f"SLURM_CONF={self.directory}/slurm.conf" in _environment(pid)]

    def _take_lock(self) -> None:
        self._lock = open(f"{self.directory}.lock", "w")  # noqa: SIM115 (held while the cluster is)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another process is testing with the cluster in {self.directory}") from None
        os.set_inheritable(self._lock.fileno(), False)

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.directory / name
        path.write_text(text)
        path.chmod(mode)

    def _daemon(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground mode, in a session of its own, and remember who it is."""
        with open(self.directory / f"{name}.out", "ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment | {"SLURM_CONF": f"{self.directory}/slurm.conf"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.directory / f"{name}.daemon").write_text(f"{process.pid} {_started(process.pid)}")

    def _start_munge(self) -> None:
        home = self.directory / "munge"
        (home / "key").write_bytes(secrets.token_bytes(1024))
        (home / "key").chmod(0o400)
        home.chmod(0o755)
        options = [f"--{o}={home}/{f}" for o, f in (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"))]
        options += [f"--log-file={home}/log", f"--seed-file={home}/seed"]
        self._daemon("munged", "munged", "--foreground", "--force", *options)
        self._until((home / "socket").exists, "munged")

    def _start_database(self, port: int, password: str) -> None:
        data = self.directory / "mariadb"
        login = "root" if os.geteuid() == 0 else "mysql"
        self.run(
            "mariadb-install-db", "--no-defaults", f"--user={login}", f"--datadir={data}", "--skip-test-db",
            "--auth-root-authentication-method=normal", "--skip-name-resolve",
        )  # fmt: skip
        sock = self.directory / "mariadb.sock"
        self._daemon(
            "mariadbd", "mariadbd", "--no-defaults", f"--user={login}", f"--datadir={data}", f"--socket={sock}",
            "--bind-address=127.0.0.1", f"--port={port}", f"--pid-file={self.directory}/mariadb.pid",
            "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
        )  # fmt: skip
        client = ["mariadb", "--no-defaults", f"--socket={sock}", "-u", "root", "-e"]
        self._until(lambda: "1" in self.run(*client, "select 1", check=False), "MariaDB")
        self.run(*client, f"create user slurm@'127.0.0.1' identified by '{password}'")
        self.run(*client, "grant all on slurm_acct.* to slurm@'127.0.0.1'")

    def _accounts(self) -> None:
        for command in (
            "add cluster test",
            "add qos long",
            "add account lab Cluster=test",
            "add user root Account=lab Cluster=test DefaultAccount=lab",
            "modify account lab set qos+=long",
        ):
            self.run("sacctmgr", "-i", *command.split())

    def _until(self, ready: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                logs = [f"{file.name}: {file.read_text()[-600:]}" for file in self.directory.glob("*.out")]
                raise RuntimeError(f"waited {seconds:.0f} s for {what}\n" + "\n".join(logs))
            time.sleep(0.1)


def require() -> None:
    """Raises Unavailable unless this machine has the programs and the rights."""
    missing = [program for program in PROGRAMS if not shutil.which(program, path=PATH)]
    if missing:
        raise Unavailable(f"no {', '.join(missing)}: apt-get install {PACKAGES}")
    if os.geteuid() != 0:
        raise Unavailable("only root can make device files and run several slurmd; try sudo")
    probe = Path(f"{DIRECTORY}.probe")
    try:
        os.mknod(probe, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        raise Unavailable("this container may not make device files (mknod); give it CAP_MKNOD") from None
    probe.unlink()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command: state, parent, ..., start time at 19."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def alive(pid: int) -> bool:
    return bool(fields := _stat(pid)) and fields[0] != "Z"


def _started(pid: int) -> str | None:
    return _stat(pid)[19] if alive(pid) else None


def descendants(pid: int) -> list[int]:
    children = [p for p in _processes() if (fields := _stat(p)) and int(fields[1]) == pid]
    return [p for child in children for p in (child, *descendants(child))]


def faults_of_ended_children(pid: int) -> int:
    """The page faults of the children that a process has waited for: more after each, however short it lived."""
    return int(fields[8]) if (fields := _stat(pid)) else 0


def _ancestors(pid: int, name: str) -> list[int]:
    """The processes above one that are called `name`."""
    found = []
    while fields := _stat(pid):
        pid = int(fields[1])
        if _stat(pid) and Path(f"/proc/{pid}/comm").read_text().startswith(name):
            found.append(pid)
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return  # another's child


def main() -> None:
    """Start, stop or look at the cluster by hand."""
    cluster, action = Cluster(), sys.argv[1] if len(sys.argv) == 2 else ""
    if action == "start":
        began = time.monotonic()
        cluster.start()
        print(f"two nodes idle after {time.monotonic() - began:.1f} s; eval $({sys.executable} {__file__} env)")
    elif action == "stop":
        cluster.stop()
    elif action == "status":
        print(*(f"{name} {pid}" for name, pid in sorted(cluster.pids().items())), sep="\n")
        print(cluster.run("sinfo", "-N", "-l", check=False))
    elif action == "env":
        print(f"export PATH={shlex.quote(cluster.path)}")
    else:
        sys.exit(f"usage: {sys.argv[0]} start|stop|status|env")


if __name__ == "__main__":
    try:
        main()
    except Unavailable as error:
        sys.exit(str(error))
