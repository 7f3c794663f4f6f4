"""The only module that talks to a judge, or to a policy behind an API: an answer is stored before it is used.

Keys of endpoints come from the environment, go into one header and nowhere else.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import ipaddress
import json
import math
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mnpo.config.oracles import Judge
from mnpo.errors import BadInput
from mnpo.progress import counter, say
from mnpo.seeds import derive

T = TypeVar("T")
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between tries, before jitter; doubled from try to try
LONGEST_RETRY_AFTER = 900.0  # seconds; who asks for a longer wait is left in peace until the next run
ANSWER_TOKENS = 4096  # what an answer without max_tokens is expected to cost at most, until a longer one is seen
BUSY = 60.0  # seconds to wait for another process that writes to the store
RETRIED = (408, 409, 425, 429)  # and 5xx
GIVE_UP = 3  # requests in a row that get no answer after all tries: then it is the endpoint
PLACEHOLDER = 8  # a key shorter than this is a word for servers that want none, and no secret


@dataclass(frozen=True)
class Request:
    """One question to a judge. `temperature` and `max_tokens` replace the judge's own."""

    name: str
    """What it is, for messages."""
    messages: tuple[Mapping[str, str], ...]
    """Of the chat: {"role": ..., "content": ...}."""
    logprobs: int = 0
    """Alternatives of each token whose log-probabilities are asked for (top_logprobs)."""
    max_tokens: int | None = None
    temperature: float | None = None
    repeat: int = 1
    """Which of several judgements of the same messages."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str
    finish: str
    """stop, length, content_filter, ..."""
    logprobs: tuple[tuple[str, float], ...] | None
    """(token, log-probability in nats) of the FIRST token's alternatives, as the endpoint orders them; None where it
    gave none, asked or not."""
    input_tokens: int
    output_tokens: int
    """Reasoning included."""


class BudgetSpent(BadInput):
    """The next call could exceed max_calls or max_cost. All answers that were under way are stored."""


def require_key(judge: Judge) -> None:
    """Check the endpoint and its key before anything is submitted. Raises BadInput, naming the variable."""
    _secret(judge)


class Client:
    """Asks a judge; whoever it asked before, also in a process that was killed, is not asked again.

    A job is one Client. Its budget counts the answers that it uses, also those that an earlier process of the job paid
    for: a job that is restarted, by hand or by a scheduler, does not get its budget anew.

    `tally`: calls (sent, and not refused by an error status), stored (answers found in the store), retried, lost (calls
    whose answer never arrived whole: they may have been billed), reasked (questions asked again for an unparsable
    verdict), unparsable (verdicts that stayed so), input_tokens, output_tokens, cost (US$). What was found in the store
    adds nothing to calls, tokens and cost.

    A policy behind an API is asked in the same way: Judge(model=model.api, endpoint=model.endpoint, key=model.key).
    """

    def __init__(self, judge: Judge, store: Path, *, progress_name: str = "judge") -> None:
        """Open or make the store (SQLite). Raises BadInput: no key, no prices, or a store that is none or damaged."""
        require_key(judge)
        if judge.max_cost is not None and not (judge.price_input or judge.price_output):
            raise BadInput(
                f"judge {judge.model}: max_cost {judge.max_cost:g} limits nothing without prices; give price_input and "
                f"price_output (US$ per million tokens), or max_calls"
            )
        self.judge = judge
        self.store = store
        self.progress_name = progress_name
        names = ("calls", "stored", "retried", "lost", "reasked", "unparsable", "input_tokens", "output_tokens", "cost")
        self.tally: dict[str, float] = dict.fromkeys(names, 0)
        self.counted: set[str] = set()  # keys of the answers in these two:
        self.job_calls, self.job_cost = 0, 0.0  # of all answers that this job uses, paid for now or earlier
        with _Store(store) as opened:
            opened.check()

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer to each request, in their order; equal requests are asked once.

        Raises:
            BudgetSpent: the next call could exceed the budget.
            BadInput: the endpoint refuses, or gives no answer to some request after all tries.
        """
        return self._ask(requests, 0)

    def verdicts(self, requests: Sequence[Request], parse: Callable[[Answer], T | None]) -> list[T | None]:
        """What `parse` reads in the answers; None after judge.reasks further answers in which it read nothing."""
        found: list[T | None] = [None] * len(requests)
        unread = list(range(len(requests)))
        for attempt in range(self.judge.reasks + 1):
            self.tally["reasked"] += len(unread) if attempt else 0
            for i, answer in zip(unread, self._ask([requests[i] for i in unread], attempt), strict=True):
                found[i] = parse(answer)
            unread = [i for i in unread if found[i] is None]
        self.tally["unparsable"] += len(unread)
        return found

    def _ask(self, requests: Sequence[Request], attempt: int) -> list[Answer]:
        keys = [_key(self.judge, request, attempt) for request in requests]
        wanted = dict(zip(keys, requests, strict=True))
        with _Store(self.store) as store:
            answers = {key: answer for key in wanted if (answer := store.find(key)) is not None}
            for key, answer in answers.items():
                self.count_found(key, answer)
            missing = {key: request for key, request in wanted.items() if key not in answers}
            if missing:
                answers |= asyncio.run(_Session(self, store, missing, attempt).run())
        return [answers[key] for key in keys]

    def count_found(self, key: str, answer: Answer) -> None:
        """Count an answer that was in the store."""
        self.tally["stored"] += 1
        self._count(key, _cost(self.judge, answer.input_tokens, answer.output_tokens))

    def count_paid(self, key: str, answer: Answer) -> None:
        """Count an answer that has just arrived."""
        cost = _cost(self.judge, answer.input_tokens, answer.output_tokens)
        self.tally["calls"] += 1
        self.tally["input_tokens"] += answer.input_tokens
        self.tally["output_tokens"] += answer.output_tokens
        self.tally["cost"] += cost
        self._count(key, cost)

    def count_lost(self, at_most: float) -> None:
        """Count a call whose answer never arrived, against the budget with all that it may have cost."""
        self.tally["calls"] += 1
        self.tally["lost"] += 1
        self.job_calls += 1
        self.job_cost += at_most

    def _count(self, key: str, cost: float) -> None:
        if key not in self.counted:
            self.counted.add(key)
            self.job_calls += 1
            self.job_cost += cost


# ------------------------------------------------------------------------------------------------------------- asking


class _Trouble(Exception):
    """A call without an answer: why, whether it may have been billed, and how long the endpoint wants to be let be."""

    def __init__(self, reason: str, *, billed: bool = False, wait: float | None = None, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.billed, self.wait = reason, billed, wait
        self.remedy = remedy  # for a person; when there is one, further tries are useless


class _Session:
    """The missing answers of one `ask`: workers share a queue, a budget and the reason to stop, if there is one."""

    def __init__(self, client: Client, store: _Store, missing: Mapping[str, Request], attempt: int) -> None:
        self.client, self.judge, self.tally = client, client.judge, client.tally
        self.store, self.missing, self.attempt = store, missing, attempt
        self.secret = _secret(client.judge)
        self.where = f"{client.judge.endpoint}, model {client.judge.model}"
        self.queue = iter(missing.items())
        self.answers: dict[str, Answer] = {}
        self.unanswered: list[str] = []
        self.unanswered_in_a_row = 0
        self.stopped: BadInput | None = None
        self.reserved: dict[str, float] = {}  # key -> US$ that its call under way may cost
        self.longest = ANSWER_TOKENS
        self.not_before = 0.0  # nobody asks before this moment of the loop's clock
        self.troubles: set[str] = set()
        self.changed = asyncio.Condition()
        self.show = counter(client.progress_name, "answers")

    async def run(self) -> dict[str, Answer]:
        """The answers by key. Raises BadInput when some are missing; those that arrived are stored."""
        import openai

        network = openai.DefaultAsyncHttpxClient(trust_env=not _is_loopback(self.judge))  # no proxy on the way home
        async with openai.AsyncOpenAI(
            api_key=self.secret,
            base_url=self.judge.endpoint,
            timeout=self.judge.timeout,
            max_retries=0,  # one policy for retries: this module's
            http_client=network,
        ) as connected:
            self.create = connected.chat.completions.with_raw_response.create
            workers = min(self.judge.concurrency, len(self.missing))
            await asyncio.gather(*(self._work() for _ in range(workers)))
        if self.stopped is not None:
            raise self.stopped
        if self.unanswered:
            raise self._no_answers()
        return self.answers

    async def _work(self) -> None:
        for key, request in self.queue:
            answer = self.store.find(key)  # another process may have asked meanwhile
            if answer is not None:
                self.client.count_found(key, answer)
            else:
                answer = await self._pursue(key, request)
            if answer is not None:
                self.answers[key] = answer
                self.show(len(self.answers), len(self.missing))
            if self.stopped:
                return

    async def _pursue(self, key: str, request: Request) -> Answer | None:
        """Ask until there is an answer, and store it; None when there is none, or when all stops."""
        trouble = None
        for failures in range(self.judge.retries + 1):
            await self._its_turn()
            if not await self._reserve(key, request):
                return None
            self.tally["retried"] += 1 if failures else 0
            try:
                answer = await self._call(request)
            except _Trouble as error:
                trouble = error
            else:
                stored = self.store.add(key, request, self.judge, answer)
                self.client.count_paid(key, answer)
                self.longest = max(self.longest, answer.output_tokens)
                self.unanswered_in_a_row = 0
                await self._settle(key)
                return stored
            if trouble.billed:
                self.client.count_lost(self.reserved[key])
            await self._settle(key)
            if trouble.remedy:
                await self._stop(BadInput(f"{self.where}: {request.name}: {trouble.reason}; {trouble.remedy}"))
                return None
            if failures < self.judge.retries:
                await self._back_off(failures, trouble)
        assert trouble is not None
        self.unanswered.append(f"{request.name} ({trouble.reason})")
        self.unanswered_in_a_row += 1
        if self.unanswered_in_a_row == GIVE_UP:
            await self._stop(self._no_answers())
        return None

    def _no_answers(self) -> BadInput:
        return BadInput(
            f"{self.where}: {len(self.unanswered)} requests got no answer in {self.judge.retries + 1} tries, the first "
            f"{self.unanswered[0]}; {self.store.count()} answers are in {self.store.path} and stay there: run it again "
            f"when the endpoint is well, or raise the judge's retries (now {self.judge.retries}) or timeout (now "
            f"{self.judge.timeout:g} s)"
        )

    async def _back_off(self, failures: int, trouble: _Trouble) -> None:
        """Wait, longer from failure to failure; when the endpoint says how long, everyone waits at least so long."""
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**failures) * random.uniform(0.5, 1.0)  # no result depends on it
        if trouble.wait is not None:
            self.not_before = max(self.not_before, asyncio.get_running_loop().time() + trouble.wait)
        kind = trouble.reason.partition(":")[0]
        if kind not in self.troubles:
            self.troubles.add(kind)
            say(f"{self.client.progress_name}: {trouble.reason}; trying again in {max(wait, trouble.wait or 0):.1f} s")
        await self._until(lambda: False, wait)

    async def _its_turn(self) -> None:
        while (wait := self.not_before - asyncio.get_running_loop().time()) > 0 and self.stopped is None:
            await self._until(lambda: False, wait)

    # Budget and stopping

    async def _until(self, ready: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait for `ready` (looked at when a call has ended), for the stop of everything, or for so many seconds."""
        if seconds is not None and seconds <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self.changed:
                await self.changed.wait_for(lambda: self.stopped is not None or ready())

    async def _reserve(self, key: str, request: Request) -> bool:
        """Keep a call's money aside once there is enough; False when all stops, be it for that reason."""
        cost = self._at_most(request)
        await self._until(lambda: self._limit(cost) is None or not self.reserved)
        if self.stopped is None and (limit := self._limit(cost)) is not None:
            await self._stop(BudgetSpent(self._spent(limit, cost)))
        if self.stopped is not None:
            return False
        self.reserved[key] = cost
        return True

    async def _settle(self, key: str) -> None:
        """Put back what was kept aside: the call has been paid, refused or lost."""
        del self.reserved[key]
        await self._notify()

    async def _stop(self, reason: BadInput) -> None:
        self.stopped = self.stopped or reason
        await self._notify()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def _at_most(self, request: Request) -> float:
        """US$ that one call costs at most: a token is at least a byte, and a message's frame a few tokens."""
        inputs = _bytes(request) + 16 * len(request.messages)
        limit = request.max_tokens or self.judge.max_tokens
        return _cost(self.judge, inputs, limit or self.longest)

    def _limit(self, cost: float) -> str | None:
        """The setting that forbids a further call of `cost` now."""
        most_calls, most_cost = self.judge.max_calls, self.judge.max_cost
        if most_calls is not None and self.client.job_calls + len(self.reserved) >= most_calls:
            return "max_calls"
        if most_cost is not None and self.client.job_cost + sum(self.reserved.values()) + cost > most_cost + 1e-9:
            return "max_cost"
        return None

    def _spent(self, limit: str, cost: float) -> str:
        next_call = f", and the next call may cost ${cost:.4f}" if limit == "max_cost" else ""
        left = len(self.missing) - len(self.answers)
        return (
            f"{self.where}: the judge's {limit} ({getattr(self.judge, limit):g}) is spent: {self.client.job_calls} "
            f"calls and ${self.client.job_cost:.4f} in this job{next_call}; {self.store.count()} answers are in "
            f"{self.store.path} and are not paid for again, {left} of {len(self.missing)} remain to be asked: "
            f"raise {limit}"
        )

    # One call

    async def _call(self, request: Request) -> Answer:
        """One HTTP request. Raises _Trouble."""
        import openai

        body = _body(self.judge, request, self.attempt)
        try:
            async with asyncio.timeout(self.judge.timeout):
                raw = await self.create(**body)
                text = self._scrubbed(raw.http_response.text)
        except openai.APIStatusError as error:
            raise self._refusal(error.status_code, error.response.headers, error.response.text) from None
        except (TimeoutError, openai.APITimeoutError):
            raise _Trouble(f"no answer within {self.judge.timeout:g} s", billed=True) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            raise _Trouble(f"the connection failed ({cause})", billed=cause != "ConnectError") from None
        return _answer(text, request)

    def _refusal(self, status: int, headers: Mapping[str, str], text: str) -> _Trouble:
        said = self._scrubbed(_error_message(text))
        reason = f"HTTP {status}: {said[:300]}" if said else f"HTTP {status}"
        if "insufficient_quota" in text:
            return _Trouble(reason, remedy=f"give the account of the key in {self.judge.key} more quota")
        if status in RETRIED or status >= 500:
            wait = _retry_after(headers)
            if wait is not None and wait > LONGEST_RETRY_AFTER:
                return _Trouble(f"{reason} (to be left alone for {wait:.0f} s)", remedy="run it again after that")
            return _Trouble(reason, wait=wait)
        remedies = {
            400: "check the judge's settings: reasoning models refuse temperature and log-probabilities, others refuse "
            "reasoning_effort; a prompt may also be too long",
            401: f"check the key in the environment variable {self.judge.key}",
            403: f"check that the account of the key in {self.judge.key} may use this model",
            404: "check the judge's endpoint and model",
        }
        return _Trouble(reason, remedy=remedies.get(status, "check the judge's endpoint, model and settings"))

    def _scrubbed(self, text: str) -> str:
        """What the endpoint says, without the key that it may echo."""
        return text.replace(self.secret, "[key]") if len(self.secret) >= PLACEHOLDER else text


# --------------------------------------------------------------------------------------------------- requests, answers


def _body(judge: Judge, request: Request, attempt: int) -> dict[str, Any]:
    """The request on the wire; what is None is left to the endpoint."""
    settings = _settings(judge, request, attempt)
    openai_own = urlsplit(judge.endpoint).hostname == "api.openai.com"
    limit = "max_completion_tokens" if openai_own or judge.reasoning_effort else "max_tokens"
    optional = {
        "reasoning_effort": settings["reasoning_effort"],
        "temperature": settings["temperature"],
        limit: settings["max_tokens"],
        "seed": settings["seed"],
        "logprobs": True if request.logprobs else None,
        "top_logprobs": request.logprobs or None,
    }
    chosen = {name: value for name, value in optional.items() if value is not None}
    return {"model": judge.model, "messages": settings["messages"], **chosen}


def _settings(judge: Judge, request: Request, attempt: int) -> dict[str, Any]:
    """All that an answer depends on. A repetition has a seed of its own, or it would be the same answer again."""
    temperature = judge.temperature if request.temperature is None else request.temperature
    repeated = request.repeat != 1 or attempt > 0
    seed = derive(judge.seed, "judge", request.repeat, attempt) if judge.seed is not None and repeated else judge.seed
    return {
        "model": judge.model,
        "endpoint": judge.endpoint.rstrip("/"),
        "reasoning_effort": judge.reasoning_effort,
        "temperature": None if temperature is None else float(temperature),
        "max_tokens": judge.max_tokens if request.max_tokens is None else request.max_tokens,
        "seed": seed,
        "messages": [dict(message) for message in request.messages],
        "logprobs": request.logprobs,
        "repeat": request.repeat,
        "try": attempt,
    }


def _key(judge: Judge, request: Request, attempt: int) -> str:
    """The name of an answer in the store: SHA-256 of the canonical JSON of all that it depends on."""
    settings = _settings(judge, request, attempt)
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        return hashlib.sha256(canonical.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{request.name}: a message holds half a character ({error.object[error.start : error.end]!a}), which no "
            f"endpoint reads; mend the text, or the decoding that it comes from"
        ) from None


def _answer(text: str, request: Request) -> Answer:
    """A chat completion. Raises _Trouble when it is none: truncated, not JSON, or of another form.

    An endpoint that counts no tokens is taken to have used one a byte, so that a budget holds.
    """
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content = choice["message"]["content"]
        if not isinstance(content, str | None):
            raise TypeError("message.content is no text")
        usage = body.get("usage") or {}
        return Answer(
            text=content or "",
            finish=str(choice.get("finish_reason") or "stop"),
            logprobs=_first_token(choice) if request.logprobs else None,
            input_tokens=int(usage.get("prompt_tokens") or _bytes(request)),
            output_tokens=int(usage.get("completion_tokens") or len((content or "").encode())),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        start = " ".join(text.split())[:200]
        raise _Trouble(f"a reply that is no chat completion: {start!r}", billed=True) from None


def _first_token(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...] | None:
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        return None
    return tuple((str(top["token"]), float(top["logprob"])) for top in tokens[0]["top_logprobs"])


def _bytes(request: Request) -> int:
    return sum(len(message["content"].encode()) for message in request.messages)


def _error_message(text: str) -> str:
    """What an error's body says, on one line."""
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    return " ".join(text.split())


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks for, as a number or as a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)


def _cost(judge: Judge, input_tokens: int, output_tokens: int) -> float:
    """US$."""
    return (input_tokens * judge.price_input + output_tokens * judge.price_output) / 1e6


# ----------------------------------------------------------------------------------------------------------- endpoints


def _secret(judge: Judge) -> str:
    """The key of a judge's endpoint. Raises BadInput."""
    address = urlsplit(judge.endpoint)
    if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
        raise BadInput(f"judge {judge.model}: endpoint {judge.endpoint!r} is no address such as https://host/v1")
    if address.username or address.password:
        raise BadInput(
            f"judge {judge.model}: the endpoint at {address.hostname} holds a user or password; put the key into the "
            f"environment variable {judge.key} and take it out of the endpoint"
        )
    secret = os.environ.get(judge.key, "").strip()
    if not secret and _is_loopback(judge):
        return "none"
    if not secret:
        raise BadInput(
            f"judge {judge.model}: {judge.endpoint} needs a key, and the environment variable {judge.key} is not set; "
            f"export {judge.key} (any word, for a server that wants none)"
        )
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise BadInput(
            f"judge {judge.model}: the environment variable {judge.key} holds no key: there are blanks, line ends or "
            f"characters beyond ASCII within it; export it anew"
        )
    return secret


def _is_loopback(judge: Judge) -> bool:
    host = urlsplit(judge.endpoint).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ----------------------------------------------------------------------------------------------------------- the store


class _Store:
    """Answers by key, each on the disk before `add` returns. Several processes of one machine may share it."""

    APPLICATION = 0x6D6E706F  # "mnpo" in the file's header: this is no other program's database

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Store:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._usable():
            self.database = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self.database.close()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        self.database.close()

    def _prepare(self) -> None:
        if not self._is_ours():
            self.database.execute("BEGIN IMMEDIATE")
            if not self._is_ours():  # nor has another process made it just now
                self._make()
            self.database.execute("COMMIT")
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = FULL")

    def _is_ours(self) -> bool:
        (application,) = self.database.execute("PRAGMA application_id").fetchone()
        return bool(application == self.APPLICATION)

    def _make(self) -> None:
        (tables,) = self.database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            raise sqlite3.DatabaseError("it is the database of something else")
        self.database.execute(f"PRAGMA application_id = {self.APPLICATION}")
        self.database.execute(
            "CREATE TABLE answers (key TEXT PRIMARY KEY, name TEXT NOT NULL, model TEXT NOT NULL, "
            "answer TEXT NOT NULL, arrived TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) STRICT"
        )

    def check(self) -> None:
        """Read it all. Raises BadInput when it is damaged."""
        with self._usable():
            (verdict,) = self.database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)

    def find(self, key: str) -> Answer | None:
        """The answer under `key`."""
        with self._usable():
            row = self.database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            return None if row is None else _loaded(row[0])

    def add(self, key: str, request: Request, judge: Judge, answer: Answer) -> Answer:
        """Store an answer; returns the one that is stored, which is an earlier one when two processes asked at once."""
        with self._usable():
            self.database.execute(
                "INSERT INTO answers (key, name, model, answer) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (key, request.name, judge.model, json.dumps(asdict(answer))),
            )
        return self.find(key) or answer

    def count(self) -> int:
        """How many answers there are."""
        with self._usable():
            return int(self.database.execute("SELECT count(*) FROM answers").fetchone()[0])

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise BadInput(
                f"{self.path}: the store of answers cannot be used ({error}); see that its directory is writable and "
                f"has room, and that no other process holds it"
            ) from None
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(
                f"{self.path}: not a readable store of answers ({reason}); it is left as it is: put a copy in its "
                f"place, or move it away (its answers are then asked, and paid for, again)"
            ) from None


def _loaded(text: str) -> Answer:
    content = json.loads(text)
    logprobs = content.pop("logprobs")
    return Answer(logprobs=None if logprobs is None else tuple((t, p) for t, p in logprobs), **content)
