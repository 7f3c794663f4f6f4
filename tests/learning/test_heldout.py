"""The loss of demonstrations that are kept aside: taken by the way, shown, and a reason to keep other weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mnpo.config.text import Text
from mnpo.errors import Interrupted
from mnpo.learning import heldout
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_model, load_tokenizer
from mnpo.stages.sft import Settings, run
from mnpo.storage.records import DEMONSTRATIONS, read, rows_of, write
from tests.helpers.interrupting import Signalled

STEPS, EVERY = 10, 3


@pytest.fixture
def files(prompts_directory: Path, tmp_path: Path) -> tuple[Path, Path]:
    """To learn from, and to keep aside: five of 140, with responses of another kind, which get less likely."""
    rows = read(DEMONSTRATIONS, prompts_directory / "demonstrations.parquet")
    for name, part in (("train", rows[5:]), ("heldout", rows[:5].assign(response="Xq7 zV?J !w9 kQ%Q Zx"))):
        write(DEMONSTRATIONS, part, tmp_path / f"{name}.parquet")
    return tmp_path / "train.parquet", tmp_path / "heldout.parquet"


@pytest.fixture
def asked(sft_settings: dict[str, Any]) -> dict[str, Any]:
    sft = {"steps": STEPS, "batch_size": 8, "learning_rate": 2e-2, "warmup": 0, "schedule": "constant"}
    return sft_settings | {"sft": sft | {"evaluate_every": EVERY, "keep": "best"}}


def fine_tuned(asked: dict[str, Any], files: tuple[Path, Path], output: Path) -> list[dict[str, float]]:
    run(Settings.model_validate(asked), files[0], output, heldout=files[1])
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def loss(policy: Path, file: Path, text: Text) -> float:
    """Mean over all response tokens, from full logits."""
    chat, model = Chat(load_tokenizer(policy), text), load_model(policy)
    found = []
    for row in rows_of(read(DEMONSTRATIONS, file)):
        encoded = chat.encode(row["prompt"], row["response"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([encoded.prompt + encoded.response])).logits[0].double()
        log = logits.log_softmax(-1)[len(encoded.prompt) - 1 : -1]
        found.append(-log.gather(1, torch.tensor(encoded.response)[:, None])[:, 0])
    return float(torch.cat(found).mean())


def test_the_weights_of_the_least_loss_are_kept(
    asked: dict[str, Any], files: tuple[Path, Path], tmp_path: Path, text: Text, manifest_of: Callable[[Path], Any]
) -> None:
    history = fine_tuned(asked, files, tmp_path / "best")
    taken = {int(row["step"]) + 1: row["heldout_loss"] for row in history if "heldout_loss" in row}
    assert list(taken) == [3, 6, 9, 10]
    kept = min(taken, key=taken.__getitem__)
    assert kept != STEPS, "the case shows nothing where the last is the best"
    assert loss(tmp_path / "best", files[1], text) == pytest.approx(taken[kept], rel=1e-4)
    facts = manifest_of(tmp_path / "best")
    assert (facts["heldout_loss"], facts["kept_step"], facts["heldout_rows"], facts["rows"]) == (
        taken[kept], kept, 5, 135,
    )  # fmt: skip
    last = fine_tuned(asked | {"sft": asked["sft"] | {"keep": "last"}}, files, tmp_path / "last")
    assert last == history
    assert loss(tmp_path / "last", files[1], text) == pytest.approx(taken[STEPS], rel=1e-4)
    assert manifest_of(tmp_path / "last")["kept_step"] == STEPS
    some = asked | {"sft": asked["sft"] | {"steps": kept, "keep": "last"}}
    fine_tuned(some, files, tmp_path / "some")  # a constant rate: the same steps
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("best", "some"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_looking_changes_nothing(asked: dict[str, Any], files: tuple[Path, Path], tmp_path: Path) -> None:
    fine_tuned(asked | {"sft": asked["sft"] | {"keep": "last"}}, files, tmp_path / "seen")
    plain = {k: v for k, v in asked["sft"].items() if k not in ("keep", "evaluate_every")}
    run(Settings.model_validate(asked | {"sft": plain}), files[0], tmp_path / "unseen")
    assert (tmp_path / "seen/model.safetensors").read_bytes() == (tmp_path / "unseen/model.safetensors").read_bytes()


def test_stopped_and_continued_the_same_weights_are_kept(
    asked: dict[str, Any], files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a kill came after better weights than those of the checkpoint had been put aside."""
    from mnpo.models import logprobs

    fine_tuned(asked, files, tmp_path / "whole")
    forward = Signalled(monkeypatch, logprobs, "response_logprobs")
    for point in (4, 3, 1):
        forward.again(point)
        with pytest.raises(Interrupted):
            fine_tuned(asked, files, tmp_path / "stopped")
    (work,) = tmp_path.glob(".work-stopped")
    torch.save({"not": torch.zeros(1)}, work / heldout.BEST)  # of a step that the checkpoint does not know
    forward.again()
    fine_tuned(asked, files, tmp_path / "stopped")
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not work.exists()
