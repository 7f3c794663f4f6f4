"""The store of answers: kills, two processes at once, damage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.oracles import Judge
from mnpo.demo.judge import Loopback, serve
from mnpo.demo.verdicts import Reply
from mnpo.errors import BadInput
from mnpo.judging.client import Client
from mnpo.judging.requests import Answer, answer_key
from mnpo.judging.store import Store
from tests.helpers.repeated_words import WORDS, asked, stored, texts
from tests.helpers.without_locks import without_locks

PROGRAM = """
import json, sys
from pathlib import Path
from mnpo.judging.client import Client
from mnpo.judging.requests import Request
from mnpo.config.oracles import Judge
client = Client(Judge(model="demo", endpoint=sys.argv[1], concurrency=8), Path(sys.argv[2]))
requests = [Request(f"r{i:03}", ({"role": "user", "content": f"Question {i:03}"},)) for i in range(int(sys.argv[3]))]
print(json.dumps({"texts": [answer.text for answer in client.ask(requests)], **client.tally}))
"""

CLAIMING = """
import os, sys
from pathlib import Path
from mnpo.judging.store import Store
with Store(Path(sys.argv[1])) as store:
    assert store.claim("killed", 600) and not store.claim("left", 600)
    os.kill(os.getpid(), 9)
"""

OPENING = """
import sys
from pathlib import Path
from mnpo.errors import BadInput
from mnpo.judging import store
store.BUSY = 0.1
try:
    with store.Store(Path(sys.argv[1])) as opened:
        opened.check()
except BadInput as error:
    print(error)
"""

HOLDING = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1], isolation_level=None) as database:
    database.execute("BEGIN IMMEDIATE")
    print("held", flush=True)
    sys.stdin.read()
"""


def start(server: Loopback, store: Path, requests: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, server.url, str(store), str(requests)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_after_a_kill_no_stored_answer_is_asked_for_again(store: Path) -> None:
    with serve(delay=0.05) as server:
        process = start(server, store, 200)
        while server.answered < 60:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.5)  # for what is still on its way to the server
        before, kept = server.requests, stored(store)
        assert before - len(kept) <= 8 and len(kept) >= 60 - 8  # what was in flight, and nothing else
        result = finish(start(server, store, 200))
        assert server.requests == before + (200 - len(kept))
    assert (result["stored"], result["calls"]) == (len(kept), 200 - len(kept))
    assert result["texts"] == [f"I think that this is about question and {i:03}." for i in range(200)]
    times = Counter(exchange.prompt for exchange in server.exchanges)
    assert [times[f"Question {name[1:]}"] for name in kept] == [1] * len(kept)


@pytest.mark.slow
def test_two_processes_share_a_store(store: Path) -> None:
    with serve(delay=0.02) as server:
        results = [finish(process) for process in [start(server, store, 60) for _ in range(2)]]
        assert len(stored(store)) == 60
        assert (
            results[0]["texts"]
            == results[1]["texts"]
            == [f"I think that this is about question and {i:03}." for i in range(60)]
        )
        assert sum(result["calls"] for result in results) == server.requests
        assert [result["calls"] + result["stored"] for result in results] == [60, 60]
        assert server.requests == 60  # each question is paid for once
        assert finish(start(server, store, 60))["calls"] == 0


def test_what_another_process_has_stored_meanwhile_is_not_paid_for(
    client: Callable[..., Client], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        cat, dog = asked("cat", "dog")
        elsewhere = Answer("from elsewhere", "stop", None, 1, 1)
        asking = client(server, concurrency=1)
        key = answer_key(asking.judge, dog, 0)

        def reply(messages: Any) -> Reply:
            with Store(store) as other:
                other.add(key, dog, asking.judge, elsewhere)
            return Reply("cat cat")

        monkeypatch.setattr("mnpo.demo.judge.reply", reply)
        assert texts(asking.ask([cat, dog])) == ["cat cat", "from elsewhere"]
        assert (server.requests, asking.tally["calls"], asking.tally["stored"]) == (1, 1, 1)


def test_a_claim_keeps_others_from_a_question_until_it_is_answered_released_or_void(store: Path) -> None:
    judge, (request,) = Judge(model="demo"), asked("cat")
    with Store(store) as here, Store(store) as there:
        assert here.claim("answered", 60) and not there.claim("answered", 60)
        here.add("answered", request, judge, Answer("one", "stop", None, 1, 2))
        assert not there.claim("answered", 60) and there.find("answered") is not None
        assert here.claim("released", 60) and not there.claim("released", 60)
        here.release("released")
        assert there.claim("released", 60)
        assert here.claim("void", -1) and there.claim("void", 60) and not here.claim("void", 60)
        here.release("void")  # which is another's now
        assert not here.claim("void", 60)
        assert here.claim("left", 60)
    with Store(store) as again:
        assert again.claim("left", 60) and again.claim("void", 60)
        dead = subprocess.run([sys.executable, "-c", CLAIMING, str(store)], check=False)
        assert dead.returncode == -signal.SIGKILL
        assert again.claim("killed", 60)


def test_of_two_answers_to_one_request_the_first_is_everybodys(store: Path) -> None:
    judge, (request,) = Judge(model="demo"), asked("cat")
    one, other = Answer("one", "stop", (("one", -0.5),), 1, 2), Answer("other", "stop", None, 3, 4)
    with Store(store) as here, Store(store) as there:
        assert here.add("key", request, judge, one) == one
        assert there.add("key", request, judge, other) == one == there.find("key")


@pytest.mark.parametrize("damage", ["text", "half", "page", "row", "foreign"])
def test_a_damaged_store_is_refused_and_left_as_it_is(client: Callable[..., Client], store: Path, damage: str) -> None:
    with serve() as server:
        client(server).ask(asked(*WORDS))
        content = store.read_bytes()
        match damage:
            case "text":
                store.write_text("not a database at all\n" * 50)
            case "half":
                store.write_bytes(content[: len(content) // 2])
            case "page":
                store.write_bytes(content[:4096] + b"\xff" * 4096 + content[8192:])
            case "row":
                with sqlite3.connect(store) as database:
                    database.execute("UPDATE answers SET answer = '{\"text\": 1' WHERE name = 'cat'")
                database.close()
            case "foreign":
                store.unlink()
                with sqlite3.connect(store) as database:
                    database.execute("CREATE TABLE things (name TEXT)")
                database.close()
        damaged, requests = store.read_bytes(), server.requests
        with pytest.raises(BadInput, match="not a readable store of answers .* it is left as it is") as caught:
            opened = client(server)
            assert damage == "row", "other damage is seen before anything is asked"
            opened.ask(asked(*WORDS))
        assert str(caught.value).startswith(f"{store}: ")
        assert (store.read_bytes(), server.requests) == (damaged, requests)


def test_a_store_that_cannot_be_made_is_one_message(client: Callable[..., Client], store: Path) -> None:
    store.mkdir(parents=True)
    with serve() as server, pytest.raises(BadInput, match="the store of answers cannot be used"):
        client(server)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_file_system_without_locks_is_named_with_the_setting_that_helps(tmp_path: Path) -> None:
    """Real refusals (ENOLCK) of what Python and SQLite ask the system; elsewhere the same process has its store."""
    here, elsewhere = tmp_path / "without", tmp_path / "with"
    here.mkdir()
    environment = without_locks(here, tmp_path)

    def opened(store: Path) -> str:
        command = [sys.executable, "-c", OPENING, str(store)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    said = opened(here / "judgements" / "store.sqlite")
    assert said.startswith(f"{here / 'judgements'}: its file system does not lock files (No locks available), as some")
    assert "set `stores` in the configuration" in said and "other process" not in said
    assert not list((here / "judgements").iterdir())  # nothing half made
    assert opened(elsewhere / "judgements" / "store.sqlite") == ""
    assert (elsewhere / "judgements" / "store.sqlite").is_file()


def test_a_store_that_another_process_holds_says_so(
    client: Callable[..., Client], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        asking = client(server)
        asking.ask(asked("cat"))
        monkeypatch.setattr("mnpo.judging.store.BUSY", 0.1)
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDING, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=r"cannot be used \(database is locked\); .* that no other process holds it"):
            asking.ask(asked("dog"))
        holder.communicate("")
        assert texts(asking.ask(asked("dog"))) == ["dog dog"]
