"""Where a training can be watched: what Weights & Biases keeps of it. TensorBoard's: tests/stages."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnpo.errors import BadInput
from mnpo.learning.trackers import watched

SECRETS = {"WANDB_API_KEY": "a1" * 20, "HF_TOKEN": "hf_neverToBeSeen", "OPENAI_API_KEY": "sk-neverToBeSeen"}
ROWS = [
    {"step": step, "tokens": 100, "loss": 2.0**-step, "margin_sft": -0.25 * step, "gradient_norm": 1.0 + step}
    for step in range(3)
]


def shown(run: Path) -> Iterator[dict[str, Any]]:
    """The steps in a file of wandb: a header of 7 bytes, then LevelDB's log format around its own records."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record, block = run.read_bytes(), 7, b"", 1 << 15
    while at + 7 <= len(content):
        if block - at % block < 7:  # the rest of a block is filled up
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            items = Record.FromString(record).history.item
            if items:
                yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            record = b""


def test_weights_and_biases_gets_the_metrics_speed_and_memory_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed here; `make test` installs it (envs/dev.txt)")
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_PROJECT": "mine", "WANDB_MODE": "offline", **SECRETS}.items():
        monkeypatch.setenv(name, value)
    with watched("train inpo.1", None, 0) as watch:
        for row in ROWS:
            watch(row)
    wandb.teardown()
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    for found, row in zip(shown(run), ROWS, strict=True):
        assert found["_step"] == row["step"]
        assert {name: found[name] for name in row.keys() - {"step"}} == {k: v for k, v in row.items() if k != "step"}
        assert found["tokens_per_second"] > 0 and found["memory_gb"] > 0
    assert b"train inpo.1" in run.read_bytes()
    for file in (f for f in tmp_path.rglob("*") if f.is_file()):
        assert not [name for name, secret in SECRETS.items() if secret.encode() in file.read_bytes()], file


def test_asking_for_weights_and_biases_where_it_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(BadInput, match="WANDB_PROJECT is set, .* but wandb is not installed; pip install it"),
        watched("train inpo.1", None, 0),
    ):
        pass
