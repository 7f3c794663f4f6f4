"""What the servers of the hub and of GitHub are asked, and what they answer; what their refusals mean."""

from __future__ import annotations

import hashlib
import traceback
from typing import Any

import pytest

from mnpo.config.sources import Dataset, Model
from mnpo.errors import BadInput
from mnpo.storage import hub, servers
from tests.helpers.loopback_hub import Fault, LoopbackHub

TOKEN = "hf_distinctive0SECRET0token"  # noqa: S105


def test_hub_listing(server: LoopbackHub) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights", "original/big.pth": b"unwanted", "README.md": b"hi"}
    commit = server.add("models/o/m", files, large=["model.safetensors", "original/big.pth"])
    found = servers.resolve("models", Model(hub="o/m", files=["*.safetensors", "*.json"]))
    weights = {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    config = {"size": 2, "blob": "9e26dfeeb6e641a33dae4961196235bdb965b21b"}  # git hash-object of {}
    assert found.model_dump(exclude_none=True) == {
        "commit": commit,
        "patterns": ["*.json", "*.safetensors"],
        "files": {"config.json": config, "model.safetensors": weights},
    }
    everything = servers.resolve("models", Model(hub="o/m"))
    assert (set(everything.files), everything.patterns) == (set(files), None)


def test_datasets_and_models_of_one_name_are_two(server: LoopbackHub) -> None:
    server.add("models/o/x", {"m": b"1"})
    server.add("datasets/o/x", {"d": b"1"})
    assert set(servers.resolve("models", Model(hub="o/x")).files) == {"m"}
    assert set(servers.resolve("datasets", Dataset(hub="o/x")).files) == {"d"}


def test_github_listing(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = server.add("github/o/code", {"data/q u.jsonl": b"hello\n", "src/x.py": b""})
    found = servers.resolve("github", Dataset(github="o/code", files=["data/"]))
    hello = {"size": 6, "blob": "ce013625030ba8dba906f756967f9e9ca394464a"}  # git hash-object of hello\n
    assert found.model_dump(exclude_none=True) == {
        "commit": commit,
        "patterns": ["data/"],
        "files": {"data/q u.jsonl": hello},
    }
    assert {request.token for request in server.log} == {None}  # the hub's token is none of GitHub's business


def test_patterns_that_match_nothing(server: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    server.add("models/o/m", {"a.json": b"1", "b.bin": b"2"})
    with pytest.raises(BadInput, match=r"o/m: files \['\*.safetensors'\] match nothing at .* a.json, b.bin"):
        servers.resolve("models", Model(hub="o/m", files=["*.safetensors"]))
    servers.resolve("models", Model(hub="o/m", files=["*.safetensors", "*.bin"]))
    assert "o/m: at revision main no file matches *.safetensors" in capsys.readouterr().err


def test_names_that_lead_outside_are_refused(server: LoopbackHub) -> None:
    server.add("models/o/m", {"../../.bashrc": b"1"})
    with pytest.raises(BadInput, match=r"'../../.bashrc' is not the name of a file inside a directory"):
        servers.resolve("models", Model(hub="o/m"))


def test_a_passing_fault_of_a_listing_passes(server: LoopbackHub) -> None:
    commit = server.add("models/o/m", {"a": b"1"})
    server.fail("/revision/main", Fault("status", 429), Fault("status", 503))
    assert servers.resolve("models", Model(hub="o/m")).commit == commit


MODEL, GATED = Model(hub="o/m"), Model(hub="o/gated", gated=True)


@pytest.mark.parametrize(
    ("source", "token", "complaint"),
    [
        (
            GATED,
            None,
            "o/gated: gated, and there is no token; .*https://huggingface.co/o/gated, .*export HF_TOKEN=...",
        ),
        (Model(hub="o/gated"), None, "o/gated: gated, and there is no token"),
        (GATED, "stranger", "o/gated: not open to the token in use; accept its licence at"),
        (GATED, "unknown", ": the hub does not accept the token in use; make another"),
        (MODEL, "unknown", ": the hub does not accept the token in use; make another"),
        (Model(hub="o/nothing"), None, "o/nothing: no such repository; check https://huggingface.co/o/nothing"),
        (Model(hub="o/nothing"), "good", "o/nothing: no such repository, or the token in use may not see it"),
        (Model(hub="o/m", revision="v9"), None, "o/m: no revision v9; see"),
        (Dataset(github="o/nothing"), None, "o/nothing: GitHub has no such repository, or no revision main of it"),
        (
            Dataset(github="o/code", revision="v9"),
            None,
            "o/code: GitHub has no such .* revision v9 of it; see https://github.com/o/code",
        ),
    ],
)
def test_refusals_say_what_to_do_and_no_secret(
    server: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    source: Any,
    token: str | None,
    complaint: str,
) -> None:
    server.add("models/o/m", {"a": b"1"})
    server.add("models/o/gated", {"a": b"1"}, gate="all")
    server.add("github/o/code", {"a": b"1"})
    server.tokens, server.strangers = {f"{TOKEN}-good"}, {f"{TOKEN}-stranger"}
    if token:
        monkeypatch.setenv("HF_TOKEN", f"{TOKEN}-{token}")
    with pytest.raises(BadInput, match=complaint) as error:
        servers.resolve(hub.kind_of(source), source)
    assert len(str(error.value).splitlines()) == 1
    assert TOKEN not in "".join(traceback.format_exception(error.value)) + "".join(capfd.readouterr())


def test_refusals_that_have_nothing_to_do_with_the_source(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("models/o/m", {"a": b"1"})
    server.add("github/o/code", {"a": b"1"})
    code = Dataset(github="o/code")
    server.fail("/commits/main", Fault("status", 403))
    with pytest.raises(BadInput, match=r"o/code: too many requests \(GitHub takes 60 an hour.* try again later"):
        servers.resolve("github", code)
    server.fail("/revision/main", Fault("page"))
    with pytest.raises(BadInput, match=r"o/m: 127.0.0.1:\d+ did not answer as it should .*login page"):
        servers.resolve("models", MODEL)
    server.truncated_trees = True
    with pytest.raises(BadInput, match="o/code: GitHub cuts its list of files short.* mirror:"):
        servers.resolve("github", code)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="o/m: HF_HUB_OFFLINE is set; unset it"):
        servers.resolve("models", MODEL)


@pytest.mark.parametrize("source", [MODEL, Dataset(github="o/code")])
def test_no_network(
    server: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], source: Any
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.close()  # nobody listens there now
    with pytest.raises(BadInput, match=r"o/\w+: no answer from 127.0.0.1:\d+.*ConnectError.*or set mirror:") as error:
        servers.resolve(hub.kind_of(source), source)
    assert TOKEN not in "".join(traceback.format_exception(error.value)) + "".join(capfd.readouterr())


@pytest.mark.parametrize("bad", [f"{TOKEN} {TOKEN}", f"Bearer\t{TOKEN}", f"{TOKEN}\x7f", f"“{TOKEN}”"])
def test_a_token_that_is_none_is_refused_unseen(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("HF_TOKEN", bad)
    server.add("models/o/m", {"a": b"1"})
    with pytest.raises(BadInput, match="HF_TOKEN: holds spaces or characters") as error:
        servers.resolve("models", Model(hub="o/m"))
    assert TOKEN not in "".join(traceback.format_exception(error.value))
    assert server.log == []
