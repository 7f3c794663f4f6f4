"""Where policies are held (MNPO_WARM=models), a command that finds its policy loaded does what it does otherwise."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mnpo.config.text import Text
from mnpo.errors import BadInput
from mnpo.models import checkpoints
from mnpo.models.checkpoints import Asked
from mnpo.planning.plan import Plan
from mnpo.storage import user_code
from mnpo.warm import server
from mnpo.warm.held import MOST, _say_how, policy_of
from tests.helpers.checkouts import until
from tests.helpers.warmed import PATIENCE, TIMES, Warm, filled, gone


class Held(Warm):
    """With policies: `one` is loaded first, and its commands teach the warm process how."""

    def __init__(self, directory: Path, prompts: Path, text: Text) -> None:
        super().__init__(directory, "pandas", "torch", "transformers", MNPO_WARM="models")
        self.prompts, self.text = prompts, text

    def assessing(self, policy: str, oracle: str = "brevity", output: str = "heldout.json") -> list[str]:
        file = self.directory / "rewards.py"
        oracles = {
            "own": {"kind": "function", "file": str(file), "function": "probe"},
            "brevity": {"kind": "rule", "rule": "brevity"},
        }
        settings = {
            "policy": "x", "oracle": oracle, "scores": [], "oracles": {oracle: oracles[oracle]}, "responses": 2,
            "decoding": {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 8}, "batch_size": 16,
            "text": self.text.model_dump(), "seed": 9,
            "functions": user_code.digests(file) if oracle == "own" else {},
        }  # fmt: skip
        words = ["assess", "--settings", json.dumps(settings), "--policy", policy, "--reference", "one"]
        return [*words, f"--prompts={self.prompts}", f"--output={output}"]

    def holders(self) -> list[psutil.Process]:
        """Those at rest, too."""
        return self.server.children()

    def made(self) -> tuple[bytes, bytes, dict[str, Any]]:
        """Summary, rows, and manifest without times."""
        facts = json.loads((self.directory / "heldout.json.manifest.json").read_text())
        files = [(self.directory / name).read_bytes() for name in ("heldout.json", "heldout.parquet")]
        return files[0], files[1], {key: value for key, value in facts.items() if key not in TIMES}

    def alone(self, *command: str) -> tuple[bytes, bytes, dict[str, Any]]:
        """The same by a process of its own."""
        self.done(*command, MNPO_WARM_SOCKETS="")
        return self.made()


@pytest.fixture
def held(tmp_path: Path, prompts_directory: Path, text: Text, sft_policy: Path, random_policy: Path) -> Iterator[Held]:
    for name, policy in (("one", sft_policy), ("two", random_policy), ("three", sft_policy)):
        shutil.copytree(policy, tmp_path / name)
    with Held(filled(tmp_path), prompts_directory / "heldout.parquet", text) as held:
        yield held


def test_the_policy_that_a_command_names() -> None:
    assert policy_of(["--log", "l", "sample", "--settings", "{}", "--policy", "a/b/", "--prompts=p"]) == "a/b"
    assert policy_of(["--log", "l", "train", "--start=a/b", "--pairs=p"]) == "a/b"
    assert policy_of(["--log", "l", "pair", "--samples", "s"]) is None


@pytest.mark.slow
def test_a_held_policy_gives_what_a_loaded_one_gives_and_its_files_are_not_read_again(held: Held) -> None:
    expected = {name: held.alone(*held.assessing(name)) for name in ("one", "two")}
    assert expected["one"][1] != expected["two"][1]
    for name in ("one", "two"):  # the first loads by itself, and says how
        held.done(*held.assessing(name))
        assert held.made() == expected[name]
    (holder,) = held.holders()  # of the second
    config = held.directory / "two/config.json"
    times, said = config.stat(), config.read_text()
    assert '"final_logit_softcapping": 30.0' in said
    config.write_text(said.replace('"final_logit_softcapping": 30.0', '"final_logit_softcapping": 10.0'))
    os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))
    held.done(*held.assessing("two"))
    assert held.made()[:2] == expected["two"][:2] and held.holders() == [holder]
    config.write_text(said)  # of another time: another policy, as far as anybody knows
    held.done(*held.assessing("two"))
    assert held.made() == expected["two"] and len(held.holders()) == 2


@pytest.mark.slow
def test_a_few_policies_are_held_by_processes_of_one_thread_that_end_with_the_server(held: Held) -> None:
    for name in ("one", "one", "two", "three"):
        held.done(*held.assessing(name))
    until(lambda: len(held.holders()) == MOST, "the end of the first holder")
    holders = held.holders()
    for holder in holders:
        names = [file.read_text().strip() for file in Path(f"/proc/{holder.pid}/task").glob("*/comm")]
        assert names.count("python") == 1
    held.server.kill()
    for holder in holders:
        gone(holder)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["its caller", "the workflow", "the workflow, held no more"])
def test_a_held_policys_command_is_stopped_by_its_caller_and_with_the_workflow(held: Held, how: str) -> None:
    held.done(*held.assessing("one"))
    (held.directory / "hold").touch()
    process = held.started(*held.assessing("one", "own"))
    worker = psutil.Process(held.probed()["pid"])
    (holder,) = held.holders()
    assert worker.ppid() == holder.pid
    if how.endswith("held no more"):
        for name in ("two", "three"):
            held.done(*held.assessing(name, output=f"{name}.json"))
        assert len(held.holders()) == MOST + 1
    if how == "its caller":
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM
    else:
        held.starter.kill()
        assert process.wait(PATIENCE) == -signal.SIGTERM
        gone(holder)
        gone(held.server)
    gone(worker)


def test_who_asks_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MNPO_ENVIRONMENTS", raising=False)
    for how, threads, forked, held in (
        ("", "1", False, False), ("0", "1", False, False), ("1", "1", True, False), ("models", "1", True, True),
        ("models", "2", True, False),
    ):  # fmt: skip
        monkeypatch.setenv("MNPO_WARM", how)
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.setattr(server, "_a_fork_says", lambda of: False)
        assert (server.asked(), server._models_asked()) == (forked, held)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(server, "_a_fork_says", lambda of: True)  # there is a GPU
    assert not server._models_asked()
    monkeypatch.setenv("MNPO_WARM", "model")
    with pytest.raises(BadInput, match="MNPO_WARM=model: expected 0, 1 or models"):
        server.asked()


def test_a_command_that_loads_its_policy_twice_is_known_by_the_first_time() -> None:
    """As `sample` does, which compares the sampler's numbers with those in float32."""
    said, told, how = [], os.pipe(), Asked("a", "causal", "bfloat16", None, True, False)
    try:
        _say_how(told[1], ["--log", "l", "sample", "--policy", "a"])
        for asked in (how._replace(path="b"), how, how._replace(dtype="float32")):
            for tell in [*checkpoints.WHEN_ASKED]:
                tell(asked)
        os.close(told[1])
        said = [json.loads(line) for line in os.fdopen(told[0])]
    finally:
        checkpoints.WHEN_ASKED.clear()
    assert said == [["sample", "a", "causal", "bfloat16", None, True, False]]


@pytest.mark.slow
def test_a_policy_that_cannot_be_loaded_is_the_commands_own_error(held: Held) -> None:
    held.done(*held.assessing("one"))
    (held.directory / "two/config.json").write_text("{}")
    alone = held.run(*held.assessing("two"), MNPO_WARM_SOCKETS="")
    assert held.run(*held.assessing("two")) == alone and alone[0] == 3 and "two" in alone[1]


@pytest.mark.slow
def test_a_training_from_a_held_policy_is_the_same_bit_for_bit(
    chain: dict[str, Path], held: Held, planned: Any
) -> None:
    plan: Plan = planned(training={"epochs": 1, "batch_size": 4})
    files = [f"--start={chain['policy']}", f"--pairs={chain['pairs']}", f"--logps={chain['logps']}", "--output=policy"]
    command = ["train", "--settings", plan.settings("train", policy="inpo.1"), *files]
    kept = []
    for sockets in ("", str(held.sockets), str(held.sockets)):
        held.done(*command, MNPO_WARM_SOCKETS=sockets)
        content = {file.name: file.read_bytes() for file in (held.directory / "policy").iterdir()}
        facts = json.loads(content.pop("manifest.json"))
        kept.append((content, {key: value for key, value in facts.items() if key not in TIMES}))
    assert kept[0] == kept[1] == kept[2] and len(held.holders()) == 1
