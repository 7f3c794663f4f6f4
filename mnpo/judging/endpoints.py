"""Endpoints and their keys, which come from the environment, go into one header and nowhere else."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from mnpo.config.oracles import Judge
from mnpo.errors import BadInput

SHORTEST_KEY = 8  # a key shorter than this is a word for servers that want none, and no secret


def require_key(judge: Judge) -> None:
    """Check the endpoint and its key before anything is submitted. Raises BadInput, naming the variable."""
    read_key(judge)


def read_key(judge: Judge) -> str:
    """The key of a judge's endpoint. Raises BadInput."""
    address = urlsplit(judge.endpoint)
    if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
        raise BadInput(f"judge {judge.model}: endpoint {judge.endpoint!r} is no address such as https://host/v1")
    if address.username or address.password:
        raise BadInput(
            f"judge {judge.model}: the endpoint at {address.hostname} holds a user or password; put the key into the "
            f"environment variable {judge.key} and take it out of the endpoint"
        )
    key = os.environ.get(judge.key, "").strip()
    if not key and is_loopback(judge):
        return "none"
    if not key:
        raise BadInput(
            f"judge {judge.model}: {judge.endpoint} needs a key, and the environment variable {judge.key} is not set; "
            f"export {judge.key} (any word, for a server that wants none)"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise BadInput(
            f"judge {judge.model}: the environment variable {judge.key} holds no key: there are blanks, line ends or "
            f"characters beyond ASCII within it; export it anew"
        )
    return key


def is_loopback(judge: Judge) -> bool:
    """Whether the endpoint is on this machine."""
    host = urlsplit(judge.endpoint).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def scrubbed(text: str, key: str) -> str:
    """What the endpoint says, without the key that it may echo."""
    return text.replace(key, "[key]") if len(key) >= SHORTEST_KEY else text
