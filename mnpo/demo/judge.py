"""A judge on the loopback interface: a chat-completions server that judges by the demo's rules and fails when told to.

`python -m mnpo.demo.judge --port 8008 --fault 500@3 --fault reset%10` serves until it is interrupted.
"""

from __future__ import annotations

import argparse
import email.utils
import json
import math
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mnpo.demo.faults import DRIP, FLOOD, REFUSALS, Fault
from mnpo.demo.verdicts import Reply, reply


@dataclass
class Exchange:
    """A request that has come in, and what became of it."""

    number: int
    asked: dict[str, Any]
    """The request's JSON."""
    fault: str
    """Empty: none."""
    arrived: float
    """On the monotonic clock, seconds."""
    answered: bool = False
    """Whether a chat completion was written."""

    @property
    def prompt(self) -> str:
        """The last message."""
        return str(self.asked["messages"][-1]["content"])


class Loopback(ThreadingHTTPServer):
    """The server: `url` for clients, `exchanges` and `peak` (requests under way at once, at most) for tests."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, port: int = 0, faults: Sequence[str] = (), *, delay: float = 0.0, retry_after: float = 1.0
    ) -> None:
        """Listen on 127.0.0.1, a free port for 0. `delay` and `retry_after` are seconds. Raises OSError."""
        self.faults = [Fault.read(text) for text in faults]
        self.delay, self.retry_after = delay, retry_after
        self.exchanges: list[Exchange] = []
        self.under_way = self.peak = 0
        self.elsewhere = "http://127.0.0.1:9/v1/chat/completions"  # where a 307 points
        self.lock, self.closing = threading.Lock(), threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """What a client calls base URL or endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        """Chat completions that were asked for, whatever became of them."""
        return len(self.exchanges)

    @property
    def answered(self) -> int:
        """Chat completions that were given: what a real endpoint bills."""
        return sum(exchange.answered for exchange in self.exchanges)

    def stats(self) -> dict[str, Any]:
        """The counts, as GET /stats gives them."""
        with self.lock:
            faults = Counter(exchange.fault for exchange in self.exchanges if exchange.fault)
            return {
                "requests": self.requests,
                "answered": self.answered,
                "peak": self.peak,
                "faults": dict(sorted(faults.items())),
            }

    def enter(self, asked: dict[str, Any]) -> Exchange:
        """A request has come in."""
        with self.lock:
            number = len(self.exchanges) + 1
            fault = next((fault.kind for fault in self.faults if fault.hits(number)), "")
            self.exchanges.append(Exchange(number, asked, fault, time.monotonic()))
            self.under_way += 1
            self.peak = max(self.peak, self.under_way)
            return self.exchanges[-1]

    def leave(self, exchange: Exchange) -> None:
        """A request's reply is about to go out: counted before the client has it, and can ask for more."""
        with self.lock:
            self.under_way -= 1
            exchange.answered = exchange.fault in ("", "unparsable")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of the server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Loopback
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together

    def do_GET(self) -> None:
        if self.path == "/stats":
            self._send(200, self.server.stats())
        else:
            self._refuse(404, f"no such address: {self.path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            self._refuse(404, f"no such address: {self.path}")
            return
        try:
            asked = json.loads(body)
            _check(asked)
        except (ValueError, KeyError, TypeError) as error:
            self._refuse(400, f"no chat completion request: {error}")
            return
        exchange = self.server.enter(asked)
        self.server.closing.wait(self.server.delay)
        self._answer(exchange)

    def _answer(self, exchange: Exchange) -> None:
        asked, fault = exchange.asked, exchange.fault
        said = Reply("I would rather not say.") if fault == "unparsable" else reply(asked["messages"])
        self.server.leave(exchange)
        if fault in REFUSALS:
            authorization = self.headers.get("Authorization", "")
            headers = {"Retry-After": self._retry_after(fault)} if fault.startswith("429") else {}
            status = 429 if fault == "quota" else int(fault[:3])
            code = "insufficient_quota" if fault == "quota" else fault
            self._refuse(status, REFUSALS[fault].format(authorization=authorization), code, headers)
        elif fault == "307":
            self._send(307, {}, headers={"Location": self.server.elsewhere})
        elif fault == "flood":
            self._flood()
        elif fault == "schema":
            self._send(200, {"object": "list", "data": []})
        elif fault == "hang":
            self.server.closing.wait()
            self.close_connection = True
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        else:
            self._send(200, _completion(asked, said, exchange.number), fault)

    def _retry_after(self, fault: str) -> str:
        if fault == "429":
            return f"{self.server.retry_after:g}"
        return email.utils.formatdate(math.ceil(time.time() + self.server.retry_after), usegmt=True)

    def _refuse(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        self._send(status, {"error": {"message": message, "type": "error", "code": code or status}}, headers=headers)

    def _send(self, status: int, content: Any, fault: str = "", headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        half = body[: len(body) // 2]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(half if fault == "truncated" else body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "drip":
            self._drip(body)
        else:
            self.wfile.write(half if fault in ("truncated", "cut") else body)
            self.wfile.flush()
        self.close_connection = self.close_connection or fault == "cut"

    def _flood(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        for _ in range(FLOOD // 2**16):
            self.wfile.write(b" " * 2**16)

    def _drip(self, body: bytes) -> None:
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            self.server.closing.wait(DRIP)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: requests are counted."""


def _check(asked: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError for what is no request."""
    if not isinstance(asked["model"], str):
        raise TypeError("model is no text")
    if not 0 <= asked.get("top_logprobs", 0) <= 20:
        raise ValueError("top_logprobs must be 0 to 20")
    if asked.get("top_logprobs") and not asked.get("logprobs"):
        raise ValueError("top_logprobs needs logprobs")
    if not asked["messages"] or not all(isinstance(message["content"], str) for message in asked["messages"]):
        raise TypeError("messages are no texts")


def _completion(asked: dict[str, Any], said: Reply, number: int) -> dict[str, Any]:
    tokens = _tokens(said.text)
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or len(tokens)
    kept = tokens[:limit]
    prompt_tokens = sum(len(_tokens(message["content"])) for message in asked["messages"])
    wanted = asked.get("top_logprobs", 0)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(kept)},
        "finish_reason": "stop" if len(kept) == len(tokens) else "length",
        "logprobs": {"content": _logprobs(kept, said.first, wanted)} if asked.get("logprobs") else None,
    }
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked["model"],
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(kept),
            "total_tokens": prompt_tokens + len(kept),
        },
    }


def _logprobs(tokens: Sequence[str], first: Sequence[tuple[str, float]], wanted: int) -> list[dict[str, Any]]:
    """The judge is sure of every token but a first one that it weighed."""
    rows = [[(token, 0.0)] for token in tokens]
    if rows and first:
        rows[0] = list(first)
    return [{**_weighed(*row[0]), "top_logprobs": [_weighed(*one) for one in row[:wanted]]} for row in rows]


def _weighed(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _tokens(text: str) -> list[str]:
    """Words and signs, each with the blanks before it: joined, they are the text."""
    return re.findall(r"\s*(?:\w+|[^\w\s])|\s+$", text)


@contextmanager
def serve(
    port: int = 0, faults: Sequence[str] = (), *, delay: float = 0.0, retry_after: float = 1.0
) -> Iterator[Loopback]:
    """A judge that answers at the server's `url` until the block ends. See Loopback and Fault for the settings."""
    server = Loopback(port, faults, delay=delay, retry_after=retry_after)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Serve until interrupted; the first line on stdout is the base URL."""
    parser = argparse.ArgumentParser(prog="python -m mnpo.demo.judge", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--fault", action="append", default=[], help="KIND@N, KIND@N-M or KIND%%N; may be repeated")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--retry-after", type=float, default=1.0, help="seconds that a 429 asks for")
    given = parser.parse_args()
    try:
        server = Loopback(given.port, given.fault, delay=given.delay, retry_after=given.retry_after)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(server.url, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


if __name__ == "__main__":
    main()
