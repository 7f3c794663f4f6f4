"""A policy's answers to the questions of benchmarks that a judge judges: made once, judged by many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from mnpo.benchmarks.questions import Question
from mnpo.config.blocks import Block
from mnpo.config.sampling import Decoding, Sampling
from mnpo.config.sources import Model, Strip
from mnpo.config.text import Reading, Text
from mnpo.errors import BadInput
from mnpo.seeds import derive

if TYPE_CHECKING:
    from mnpo.samplers import Request, Response
    from mnpo.storage.journal import Journal

Asking = Literal["alpaca-eval", "arena-hard", "mt-bench", "minerva", "evalscope"]
"""What a policy answers: benchmarks that a judge judges, Minerva-Math where EvalScope's protocol is asked for, and
prompts that EvalScope rendered."""
# Greedy where the protocol says temperature 0 (Arena-Hard) or leaves it to the model's owner (AlpacaEval; the paper's
# own setting is unpublished). The limits are Arena-Hard's and MT-Bench's own; AlpacaEval's is a usual one of its board.
DECODING: dict[str, Decoding] = {
    "alpaca-eval": Decoding(temperature=0, top_p=1, max_new_tokens=2048),
    "arena-hard": Decoding(temperature=0, top_p=1, max_new_tokens=4096),
    "mt-bench": Decoding(temperature=0, top_p=1, max_new_tokens=1024),
    **dict.fromkeys(("minerva", "evalscope"), Decoding(temperature=0, top_p=1, max_new_tokens=2048)),  # EvalScope's own
}
TEMPERATURES = {  # MT-Bench's, by category; other categories than its own are drawn at 0.7 too
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0,
    "stem": 0.1, "humanities": 0.1,
}  # fmt: skip


class Settings(Block):
    """What answering reads."""

    policy: str
    benchmark: Asking
    limit: int | None = Field(None, ge=1)
    """The first so many questions only."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Replaces the benchmark's own limit."""
    max_length: int | None = Field(None, ge=16)
    """Tokens of conversation and answer together; None: what the policy can."""
    backend: Literal["transformers", "vllm"] = "transformers"
    batch_size: int = Field(16, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int
    strip: Strip | None = None
    """What is taken off the policy's replies (see Model)."""
    max_empty: float = Field(0.2, ge=0, lt=1)
    """Of a policy behind an endpoint: the largest share of empty answers."""
    text: Reading | None = None
    """What is said about the policy's template; None: nothing."""
    limits: dict[str, int] = {}
    """Where the prompts are EvalScope's: the limit of the answers to each benchmark's."""

    def decoding(self, category: str) -> Decoding:
        """How questions of a category are answered."""
        usual = DECODING[self.benchmark]
        return Decoding(
            temperature=TEMPERATURES.get(category, 0.7) if self.benchmark == "mt-bench" else usual.temperature,
            top_p=usual.top_p,
            max_new_tokens=self.limits.get(category) or self.max_new_tokens or usual.max_new_tokens,
        )


class Asked(NamedTuple):
    """A conversation that waits for the policy's answer."""

    item_id: str
    turn: int
    """1, or 2 for MT-Bench's second."""
    messages: list[dict[str, str]]


class Given(NamedTuple):
    """The policy's answer."""

    response: str
    tokens: int
    finish: str
    """`stop`, or `length` when it was cut."""
    thinking: int = 0
    """Tokens before it, which were taken off."""


Answerer = Callable[[Sequence[Asked], Decoding], Sequence[Given]]


def converse(asked: Sequence[Question], settings: Settings, answer: Answerer) -> list[dict[str, Any]]:
    """Ask every turn of every question; a later turn continues the policy's own earlier answers.

    Returns rows of records.ANSWERS, in the questions' order.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for turn in range(1, max(len(q.turns) for q in asked) + 1):
        going = [q for q in asked if len(q.turns) >= turn]
        by_decoding: dict[Decoding, list[Question]] = {}
        for question in going:
            by_decoding.setdefault(settings.decoding(question.category), []).append(question)
        for decoding, group in by_decoding.items():
            conversations = [Asked(q.item_id, turn, _messages(q, turn, rows)) for q in group]
            for question, given in zip(group, answer(conversations, decoding), strict=True):
                rows[question.item_id, turn] = {
                    "item_id": question.item_id,
                    "turn": turn,
                    "category": question.category,
                    "prompt": question.turns[turn - 1],
                    **given._asdict(),
                }
    return [rows[q.item_id, turn] for q in asked for turn in range(1, len(q.turns) + 1)]


def _messages(question: Question, turn: int, rows: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[dict[str, str]]:
    messages = []
    for earlier in range(1, turn):
        messages.append({"role": "user", "content": question.turns[earlier - 1]})
        messages.append({"role": "assistant", "content": rows[question.item_id, earlier]["response"]})
    return [*messages, {"role": "user", "content": question.turns[turn - 1]}]


def of_policy(
    settings: Settings, policy: Path, asked: Sequence[Question], journal: Journal | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The answers of the policy in a directory, and facts for their manifest. Seeds name question and turn only.

    `journal` keeps finished batches, and has those of an earlier session.

    Raises:
        BadInput: also when the policy's context has no room for the benchmark's answers.
        Interrupted: a signal asked the journal's session to stop.
    """

    from transformers import AutoConfig

    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_tokenizer, parameters
    from mnpo.models.thinking import Reader
    from mnpo.samplers import Request

    text = _text(settings, AutoConfig.from_pretrained(policy, local_files_only=True).get_text_config())
    chat = Chat(load_tokenizer(policy), text)
    reader = Reader(chat, settings.strip)

    def given(response: Response) -> Given:
        shown, thought = reader.split(chat.decode(response.tokens), len(response.tokens))
        return Given(shown.strip(), len(response.tokens) - thought, response.finish, thought)

    with _sampler(settings, policy, chat.stop_ids, text.max_length, journal) as draw:

        def answer(conversations: Sequence[Asked], decoding: Decoding) -> list[Given]:
            requests = [
                Request(
                    chat.prompt(c.messages, f"{settings.benchmark} {c.item_id}, turn {c.turn}"),
                    derive(settings.seed, settings.benchmark, c.item_id, c.turn),
                )
                for c in conversations
            ]
            return [given(response) for response in draw(requests, decoding)]

        rows = converse(asked, settings, answer)
    facts = {"parameters": parameters(policy), "prompts_cut": chat.counts["prompts_cut"], **chat.counted}
    return rows, {**facts, **_facts(rows)}


@contextmanager
def _sampler(
    settings: Settings, policy: Path, stop_ids: list[int], window: int, journal: Journal | None
) -> Iterator[Callable[[list[Request], Decoding], list[Response]]]:
    """Whoever draws the policy's responses, started once for all of them."""
    what = f"answer {settings.benchmark}, {settings.policy}"
    if settings.backend == "vllm":
        from mnpo.samplers.vllm import Engine

        sampling = Sampling(sampler="vllm", batch_size=settings.batch_size, dtype=settings.dtype)
        with Engine(policy, sampling, stop_ids, window) as engine:
            yield lambda requests, decoding: engine.draw(requests, decoding, what, journal)
        return
    from mnpo.models.checkpoints import load_model
    from mnpo.samplers import transformers

    model = load_model(policy, dtype=settings.dtype)
    yield lambda requests, decoding: transformers.draw(
        model, requests, decoding, stop_ids, settings.batch_size, what, journal
    )


def _text(settings: Settings, architecture: Any) -> Text:
    limits = settings.limits or {settings.benchmark: settings.decoding("").max_new_tokens}
    new, longest = max((limit, name) for name, limit in limits.items())
    window = settings.max_length or architecture.max_position_embeddings
    if window - new < 16:
        raise BadInput(
            f"{longest}: answers of {new} tokens leave no room for questions in the {window} of "
            f"{settings.policy}; set evaluation.settings.{longest}.max_new_tokens lower"
        )
    said = settings.text.model_dump() if settings.text else {}
    return Text(max_length=window, max_prompt_length=window - new, **said)


def of_api(
    settings: Settings, model: Model, store: Path, asked: Sequence[Question]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The answers of a model behind an endpoint, each stored in `store` when it arrives, and facts for their manifest.

    Raises:
        BadInput: more empty answers than settings.max_empty permits; or see mnpo.judging.client.Client.
    """
    from mnpo.judging.client import Client
    from mnpo.judging.requests import Answer, Request, endings
    from mnpo.models.thinking import characters_shown

    what = f"{settings.policy}, {settings.benchmark}"
    client = Client(model.as_judge(), store, progress_name=f"answer {settings.benchmark}, {settings.policy}")

    def said(answer: Answer) -> str:
        return answer.text[characters_shown(answer.text, settings.strip) :].strip()

    def given(answer: Answer) -> Given:
        """The endpoint counts all tokens together: of those in its text, thinking has its share of the text."""
        shown = answer.output_tokens - answer.reasoning_tokens
        share = characters_shown(answer.text, settings.strip) / len(answer.text) if answer.text else 0.0
        thought = answer.reasoning_tokens + round(shown * share)
        return Given(said(answer), answer.output_tokens - thought, answer.finish, thought)

    def answer(conversations: Sequence[Asked], decoding: Decoding) -> list[Given]:
        requests = [
            Request(
                f"{settings.benchmark} {c.item_id}, turn {c.turn}",
                tuple(c.messages),
                **model.decoding(decoding.temperature, decoding.max_new_tokens),  # type: ignore[arg-type]
            )
            for c in conversations
        ]
        return list(map(given, client.replies(requests, said, asker=what)))

    rows = converse(asked, settings, answer)
    empty = [row["finish"] for row in rows if not row["response"]]
    if len(empty) / len(rows) > settings.max_empty:
        raise BadInput(
            f"{what}: {len(empty)} of {len(rows)} answers of {model.api} are empty ({endings(empty)}), more than "
            f"evaluation.max_empty ({settings.max_empty:g}) permits: a judge would take them for the policy's worst. "
            f"Where they were cut (length), raise models.{settings.policy}.max_tokens, in which thinking counts, or "
            f"lower its reasoning_effort; else see what the endpoint filters. {client.mend}; or raise "
            "evaluation.max_empty"
        )
    return rows, {"calls": client.tally, **_facts(rows)}


def _facts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "rows": len(rows),
        "tokens": sum(row["tokens"] + row["thinking"] for row in rows),
        "empty_responses": sum(not row["response"] for row in rows),
        "cut_responses": sum(row["finish"] == "length" for row in rows),
    }
