"""Keys of endpoints: needed beforehand, and nowhere but in the header."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from mnpo.config.oracles import Judge
from mnpo.demo.faults import REFUSALS
from mnpo.demo.judge import serve
from mnpo.errors import BadInput
from mnpo.judging.client import Client
from mnpo.judging.endpoints import require_key
from mnpo.judging.requests import Request
from tests.helpers.repeated_words import asked

SECRET = "distinctivekey0123456789"


def test_a_key_is_needed_before_anything_is_asked(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(model="gpt-5-mini", key="JUDGE_KEY")
    for value in (None, "", "  "):
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(BadInput, match="https://api.openai.com/v1 needs a key.* JUDGE_KEY is not set"):
            require_key(judge)
        with pytest.raises(BadInput, match="JUDGE_KEY"):
            Client(judge, store)
    assert not store.exists()
    monkeypatch.setenv("JUDGE_KEY", f"  {SECRET}\n")  # as `export JUDGE_KEY=$(cat file)` may leave it
    require_key(judge)


def test_loopback_endpoints_need_none() -> None:
    for host in ("127.0.0.1", "localhost", "127.1.2.3", "[::1]"):
        require_key(Judge(model="demo", endpoint=f"http://{host}:8000/v1", key="NOT_SET"))
    for host in ("127.0.0.1.example.org", "10.0.0.1", "localhost.example.org"):
        with pytest.raises(BadInput, match="NOT_SET"):
            require_key(Judge(model="demo", endpoint=f"http://{host}:8000/v1", key="NOT_SET"))


def test_a_key_that_is_none_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (f"{SECRET}\n{SECRET}", f"{SECRET} {SECRET}", f"{SECRET}é"):
        monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(BadInput, match="JUDGE_KEY holds no key") as caught:
            require_key(Judge(model="gpt-5-mini", key="JUDGE_KEY"))
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["api.openai.com/v1", "ftp://host/v1", "https:///v1", "https://host/v1?key=1"])
def test_an_endpoint_must_be_an_address(endpoint: str) -> None:
    with pytest.raises(BadInput, match="is no address such as"):
        require_key(Judge(model="demo", endpoint=endpoint))


def test_a_key_within_the_endpoint_is_refused_and_not_shown() -> None:
    with pytest.raises(BadInput, match="host holds a user or password") as caught:
        require_key(Judge(model="demo", endpoint=f"https://me:{SECRET}@host/v1"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("echo", ["key {authorization}", "x" * 275 + "{authorization}"])
@pytest.mark.parametrize("fault", ["401", "500"])
def test_the_key_is_nowhere_but_in_the_header(
    client: Callable[..., Client],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fault: str,
    echo: str,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    monkeypatch.setitem(REFUSALS, fault, echo)
    caplog.set_level(logging.DEBUG)
    with serve(faults=[f"{fault}@2-9"]) as server:
        asking = client(server, key="JUDGE_KEY", concurrency=1, retries=1)
        # The server's answer repeats the words of its question: an echo in an answer, which is stored.
        (answer,) = asking.ask([Request("echo", ({"role": "user", "content": f"{SECRET}?"},))])
        assert answer.text == "I think that this is about [key]."
        with pytest.raises(BadInput, match="HTTP") as caught:
            asking.ask(asked("cat"))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(vars(asking))
    shown += caplog.text + "".join(capfd.readouterr())
    assert "HTTP" in shown and SECRET[:12] not in shown
    files = list(store.parent.iterdir())
    assert files and all(SECRET.encode() not in file.read_bytes() for file in files)
