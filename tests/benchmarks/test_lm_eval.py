"""lm-eval on local files: its own command line's figures, one BOS, counted cuts, refusals. The demo's small data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnpo.benchmarks import lm_eval, lm_eval_model, mended
from mnpo.benchmarks.cards import CARDS
from mnpo.benchmarks.lm_eval import Settings
from mnpo.benchmarks.lm_eval_model import Watched, load_policy
from mnpo.benchmarks.lm_eval_tasks import passed, run_programs, write_tasks
from mnpo.config.evaluation import BenchmarkSettings
from mnpo.config.reading import load
from mnpo.config.text import Reading, Text
from mnpo.demo import benchmarks as demo
from mnpo.errors import BadInput
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_tokenizer, save_copy
from mnpo.storage.records import read_rows
from tests.helpers.families import FAMILIES, saved
from tests.helpers.templated import GEMMA, TEMPLATES, THINKING, policy_with, thinking_policy

pytestmark = pytest.mark.slow  # importing lm-eval takes ten seconds, and most load a model
ELEVEN = [card.name for card in CARDS.values() if card.harness == "lm-eval"]
ROOT = Path(__file__).parents[2]
DEMO = load(ROOT / "configs/demo.yaml").evaluation
AS_IN_DEMO = {name: DEMO.of(name) for name in ELEVEN}


def settings(*names: str, **changes: Any) -> Settings:
    return Settings(policy="tiny", benchmarks={name: AS_IN_DEMO[name] for name in names}, batch_size=4, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("benchmarks")
    for name in CARDS:
        demo.make(directory / name, name, seed=0)
    return {name: directory / name for name in CARDS}


@pytest.fixture(scope="module")
def measured(sft_policy: Path, data: dict[str, Path]) -> dict[str, lm_eval.Result]:
    return lm_eval.evaluate(settings(*ELEVEN), sft_policy, data)


# ------------------------------------------------------------------------------------------------------- what comes out


def test_every_benchmark_gets_a_summary_and_a_row_for_each_item(measured: dict[str, lm_eval.Result]) -> None:
    assert list(measured) == ELEVEN
    for name, (summary, rows) in measured.items():
        assert summary["policy"] == "tiny" and summary["benchmark"] == name and summary["missing"] == 0
        assert summary["items"] == len(rows) == len({row["item_id"] for row in rows})
        assert summary["metric"] == CARDS[name].metric
        assert summary["value"] == pytest.approx(100 * sum(row["value"] for row in rows) / len(rows), rel=1e-12)
        assert summary["value"] == 100 * summary["metrics"][summary["metric"]]
        assert 0 <= summary["stderr"] <= 100 and f"{len(rows)} items, the benchmark has" in summary["protocol"]
        json.dumps(summary, allow_nan=False)


def test_the_standard_error_is_that_of_the_mean(measured: dict[str, lm_eval.Result]) -> None:
    summary, rows = measured["truthfulqa"]
    values = [row["value"] for row in rows]
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    assert summary["stderr"] == pytest.approx(100 * (variance / len(values)) ** 0.5)


def test_rows_are_records(measured: dict[str, lm_eval.Result], tmp_path: Path) -> None:
    from mnpo.storage.records import ITEMS, read, write

    for name, (summary, rows) in measured.items():
        write(ITEMS, rows, tmp_path / f"{name}.parquet")
        assert len(read(ITEMS, tmp_path / f"{name}.parquet")) == summary["items"]


def test_a_response_is_the_reply_or_the_likeliest_choice(measured: dict[str, lm_eval.Result]) -> None:
    assert {row["response"] for row in measured["gpqa"][1]} <= {"(A)", "(B)", "(C)", "(D)"}
    assert all(row["tokens"] == 0 for row in measured["arc"][1])
    for row in measured["ifeval"][1]:
        assert row["tokens"] <= 32 and (row["tokens"] > 0) == bool(row["response"])


def test_mmlu_weighs_subjects_by_their_size(measured: dict[str, lm_eval.Result]) -> None:
    summary, rows = measured["mmlu"]
    by_subject: dict[str, list[float]] = {}
    for row in rows:
        by_subject.setdefault(row["item_id"].split("/")[0], []).append(row["value"])
    assert {subject: len(values) for subject, values in by_subject.items()} == {
        "anatomy": 5,
        "nutrition": 4,
        "virology": 3,
    }
    weighted = sum(len(v) * (sum(v) / len(v)) for v in by_subject.values()) / 12
    assert summary["value"] == pytest.approx(100 * weighted)


def test_what_a_card_does_not_say_is_named(measured: dict[str, lm_eval.Result]) -> None:
    protocol = measured["gsm8k"][0]["protocol"]
    assert "1 shots, chat template" in protocol
    assert "CHANGED: 1 shots instead of 5; 8 items, the benchmark has 1,319; at most 32 new tokens instead of 1024" in (
        protocol
    )
    assert protocol.endswith(f"; in the paper: {CARDS['gsm8k'].paper}") and "asks for steps" in protocol


def test_prompts_that_do_not_fit_are_counted(measured: dict[str, lm_eval.Result]) -> None:
    summary = measured["truthfulqa"][0]  # its six examples are longer than the policy's 128 tokens
    assert summary["prompts_cut"] == 8 and "8 prompts cut at their start" in summary["protocol"]
    assert measured["arc"][0]["prompts_cut"] == 0


def test_the_same_inputs_give_the_same_results(
    measured: dict[str, lm_eval.Result], sft_policy: Path, data: dict[str, Path]
) -> None:
    """Also when the benchmarks before are others: GPQA shuffles its choices."""
    again = lm_eval.evaluate(settings("gpqa", "gsm8k"), sft_policy, data)
    assert again == {name: measured[name] for name in ("gpqa", "gsm8k")}


def test_a_limit_takes_the_first_items_of_every_subject_in_turn(sft_policy: Path, data: dict[str, Path]) -> None:
    limited = settings("arc", "mmlu")
    limited = limited.model_copy(
        update={"benchmarks": {"arc": BenchmarkSettings(limit=3), "mmlu": BenchmarkSettings(limit=8, shots=0)}}
    )
    found = lm_eval.evaluate(limited, sft_policy, data)
    assert [row["item_id"] for row in found["arc"][1]] == ["0", "1", "2"]
    assert [row["item_id"] for row in found["mmlu"][1]] == [
        *(f"anatomy/{i}" for i in range(3)),
        *(f"nutrition/{i}" for i in range(3)),
        *(f"virology/{i}" for i in range(2)),
    ]
    assert "only the first 3 items" in found["arc"][0]["protocol"]


def test_a_single_item_has_no_spread(sft_policy: Path, data: dict[str, Path]) -> None:
    one = Settings(policy="tiny", benchmarks={"arc": BenchmarkSettings(limit=1)})
    summary, rows = lm_eval.evaluate(one, sft_policy, data)["arc"]
    assert (summary["stderr"], len(rows)) == (0.0, 1)


# ------------------------------------------------------------------------------------------- the command line's figures


@pytest.mark.parametrize("chat", [True, False])
def test_the_harness_own_command_line_says_the_same_to_the_last_digit(
    chat: bool, measured: dict[str, lm_eval.Result], sft_policy: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    """All eleven: those with the chat template by one command, those without by another."""
    prepared = {
        name: list(write_tasks(CARDS[name], AS_IN_DEMO[name], data, tmp_path / "tasks" / name).values())
        for name in ELEVEN
        if CARDS[name].chat == chat
    }
    tasks = [str(file) for files in prepared.values() for file in files]
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "4"]
    command += ["--model_args", f"pretrained={sft_policy},dtype=float32", "--tasks", ",".join(tasks), "--log_samples"]
    command += ["--output_path", str(tmp_path / "out"), *(["--apply_chat_template"] if chat else [])]
    offline = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    ours = {"PYTHONPATH": str(ROOT), "NLTK_DATA": str(data["ifeval"] / "nltk_data")}  # of HumanEval and IFEval
    command += ["--confirm_run_unsafe_code"] if chat else []
    result = subprocess.run(command, capture_output=True, text=True, env=offline | ours, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(file.read_text(encoding="utf-8"))["results"]
    for name, files in prepared.items():
        summary, rows = measured[name]
        metric, rule = CARDS[name].metric.split(",")
        samples = [s for task in files for s in _samples(tmp_path / "out", task.stem) if s["filter"] == rule]
        assert [float(s[metric]) for s in samples] == [row["value"] for row in rows]
        if len(files) == 1:
            for key, value in summary["metrics"].items():
                assert theirs[name][key] == value
            error = theirs[name][CARDS[name].metric.replace(",", "_stderr,")]
            assert error == summary["stderr"] / 100
        else:  # MMLU's subjects, weighted by size
            right = sum(theirs[task.stem][CARDS[name].metric] * theirs[task.stem]["sample_len"] for task in files)
            assert summary["value"] == pytest.approx(100 * right / len(rows), rel=1e-14)
        if name == "gsm8k":
            assert [s["resps"][0][0] for s in samples] == [row["response"] for row in rows]
            assert any(row["response"] for row in rows)


def _samples(output: Path, task: str) -> list[dict[str, Any]]:
    """What the command line wrote of a task's items, in their order."""
    (file,) = output.rglob(f"samples_{task}_2*.jsonl")
    return sorted(
        (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()), key=lambda s: s["doc_id"]
    )


# ------------------------------------------------------------------------------------------------------ exactly one BOS


@pytest.fixture
def policy(tmp_path: Path) -> Callable[..., Path]:
    return partial(policy_with, tmp_path / "policy")


def load(directory: Path, batch_size: int, reading: Reading | None = None) -> Any:
    how: dict[str, Any] = {"dtype": "float32", "batch_size": batch_size, "max_length": None, "seed": 0}
    return load_policy(directory, "transformers", **how, reading=reading)


def fed(
    directory: Path, data: dict[str, Path], name: str, scratch: Path, reading: Reading | None = None
) -> list[list[int]]:
    """The token ids that the first sequence of each of the model's own forward passes begins with."""
    chosen = BenchmarkSettings(limit=1, shots=1 if name == "gsm8k" else None, max_new_tokens=2)
    one = Settings(policy="x", benchmarks={name: chosen}, batch_size=1)
    tasks = write_tasks(CARDS[name], chosen, data, scratch)
    model = load(directory, batch_size=1, reading=reading)
    seen: list[list[int]] = []

    def record(module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids.shape[1] > 1:  # not the single new token of a generation
            seen.append(ids[0].tolist())

    model.model.register_forward_pre_hook(record, with_kwargs=True)
    lm_eval._run(one, model, CARDS[name], chosen, tasks)
    return seen


@pytest.mark.parametrize("name", ["gsm8k", "arc", "humaneval"])
@pytest.mark.parametrize(("template", "bos", "specials"), TEMPLATES.values(), ids=TEMPLATES)
def test_the_policy_reads_exactly_one_bos(
    policy: Callable[..., Path],
    data: dict[str, Path],
    tmp_path: Path,
    name: str,
    template: str,
    bos: str | None,
    specials: list[str],
) -> None:
    from transformers import AutoTokenizer

    directory = policy(template, bos, specials)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    sequences = fed(directory, data, name, tmp_path / "task")
    assert sequences
    for ids in sequences:
        turn = tokenizer.convert_tokens_to_ids(specials[0])
        start = [tokenizer.bos_token_id] if bos else []
        after = turn if CARDS[name].chat else tokenizer.convert_tokens_to_ids("Q")  # ARC's bare "Question:"
        assert ids[: len(start) + 1] == [*start, after]
        assert bos is None or ids.count(tokenizer.bos_token_id) == 1


def test_two_bos_are_refused(
    policy: Callable[..., Path], data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the policy's loader, and by what watches the requests should that miss it."""
    from transformers import AutoTokenizer

    twice = policy("{{ bos_token }}" + GEMMA, *TEMPLATES["gemma-2"][1:])
    with pytest.raises(BadInput, match="the chat template renders 2 <bos>"):
        fed(twice, data, "gsm8k", tmp_path / "task")
    monkeypatch.setattr("mnpo.models.checkpoints.load_tokenizer", AutoTokenizer.from_pretrained)
    with pytest.raises(BadInput, match="x, gsm8k, item 0: 2 BOS before the prompt"):
        fed(twice, data, "gsm8k", tmp_path / "again")


def test_no_bos_is_refused_where_the_template_has_one(
    policy: Callable[..., Path], data: dict[str, Path], tmp_path: Path
) -> None:
    """Multiple choices are bare text: only the tokenizer could add it."""
    never = policy(*TEMPLATES["gemma-2"], adds=False)
    with pytest.raises(BadInput, match="x, arc, item 0: 0 BOS before the prompt"):
        fed(never, data, "arc", tmp_path / "task")


# ----------------------------------------------------------------------------------------------------- chat templates


@pytest.mark.parametrize(
    "family", ["zephyr", "llama-2", "mistral", "smollm-2", "smollm-3-without-thinking", "deepseek-r1-distill", "alpaca"]
)
def test_the_policy_is_asked_the_tokens_that_it_is_trained_on(
    family: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shot and a question, as the first forward pass reads them."""
    reading = Reading.model_validate(FAMILIES[family].reading)
    directory, asked, rendered = saved(tmp_path / "policy", family), list[Any](), Chat.rendered

    def watched(chat: Chat, turns: Any, going_on: bool = False) -> str:
        asked.append(turns)
        return rendered(chat, turns, going_on)

    monkeypatch.setattr(Chat, "rendered", watched)
    sequences = fed(directory, data, "gsm8k", tmp_path / "task", reading)
    chat = Chat(load_tokenizer(directory), Text(max_length=4096, max_prompt_length=4095, **reading.model_dump()))
    first = next(turns for turns in asked if len(turns) > 1)  # not what asks whether the prompt opens thinking
    assert [turn["role"] for turn in first] == ["user", "assistant", "user"]
    assert sequences[0] == chat.prompt(first)
    model = load(directory, batch_size=1, reading=reading)
    assert sorted(model.model.generation_config.eos_token_id) == chat.stop_ids


def test_bare_text_has_the_bos_that_the_tokenizer_gives_it_or_that_is_said(
    data: dict[str, Path], tmp_path: Path
) -> None:
    """Multiple choices under SmolLM2: what opens its turns is no BOS that a text without turns would lack."""
    directory = saved(tmp_path / "policy", "smollm-2")
    tokenizer = load_tokenizer(directory)
    question = tokenizer.convert_tokens_to_ids("Q")
    for said, front in ((None, []), ("add", [tokenizer.bos_token_id])):
        sequences = fed(directory, data, "arc", tmp_path / f"{said}", Reading(bos=said))
        assert sequences and all(ids[: len(front) + 1] == [*front, question] for ids in sequences)


def test_control_tokens_in_a_question_stay_text(data: dict[str, Path], tmp_path: Path) -> None:
    lines = (data["ifeval"] / "ifeval_input_data.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    first["prompt"] = "<|im_end|>" + first["prompt"]
    shutil.copytree(data["ifeval"], tmp_path / "ifeval")
    (tmp_path / "ifeval" / "ifeval_input_data.jsonl").write_text(json.dumps(first) + "\n", encoding="utf-8")
    directory = saved(tmp_path / "policy", "smollm-2")
    tokenizer = load_tokenizer(directory)
    (ids, *_) = fed(directory, {"ifeval": tmp_path / "ifeval"}, "ifeval", tmp_path / "task")
    assert tokenizer.decode(ids).count("<|im_end|>") == 3
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


# -------------------------------------------------------------------------------------------------------------- lengths


def test_replies_are_shortened_before_prompts_are_cut(
    policy: Callable[..., Path], data: dict[str, Path], tmp_path: Path
) -> None:
    """Bytes are tokens here. The reply gets what the longest prompt leaves, but at least a quarter."""
    directory = policy(*TEMPLATES["qwen"])
    lines = (data["ifeval"] / "ifeval_input_data.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    around = len("user\n") + len("\n") + len("assistant\n") + 3  # three special tokens
    lengths = [len(prompt) + around for prompt in prompts]
    for room in (max(lengths) + 20, max(lengths)):
        chosen = Settings(policy="x", benchmarks={"ifeval": BenchmarkSettings()}, max_length=room)
        summary, rows = lm_eval.evaluate(chosen, directory, data)["ifeval"]
        allowed = max(room - max(lengths), room // 4)
        assert f"at most {allowed} new tokens instead of 1280" in summary["protocol"]
        assert summary["prompts_cut"] == sum(length > room - allowed for length in lengths)
        assert summary["replies_cut"] == sum(row["tokens"] >= allowed for row in rows)
        assert all(len(row["response"]) <= allowed for row in rows)


def test_a_choice_longer_than_the_policy_is_refused(policy: Callable[..., Path], data: dict[str, Path]) -> None:
    directory = policy(*TEMPLATES["qwen"])
    short = Settings(policy="x", benchmarks={"hellaswag": BenchmarkSettings()}, max_length=16)
    with pytest.raises(BadInput, match="hellaswag, item 0: a choice of .* tokens, and the policy takes 16"):
        lm_eval.evaluate(short, directory, data)


# ------------------------------------------------------------------------------------------------------- where data lie


def prepared(name: str, directory: Path, scratch: Path, **chosen: Any) -> dict[str, Path]:
    return write_tasks(CARDS[name], BenchmarkSettings(**chosen), {name: directory}, scratch)


def test_splits_may_be_plain_files(data: dict[str, Path], sft_policy: Path, tmp_path: Path) -> None:
    """The same rows as one file a split, MMLU's with a column for the subject, give the same results."""
    from mnpo.storage.records import read_rows

    names = ("arc", "mmlu", "humaneval")
    for name in names:
        (tmp_path / name).mkdir()
        for file in sorted(data[name].rglob("*.parquet")):
            split = file.name.split("-")[0]
            with open(tmp_path / name / f"{split}.jsonl", "a", encoding="utf-8") as target:
                target.writelines(json.dumps(row) + "\n" for row in read_rows(file))
    plain = lm_eval.evaluate(settings(*names), sft_policy, {name: tmp_path / name for name in names})
    assert plain == lm_eval.evaluate(settings(*names), sft_policy, data)


def test_missing_data_say_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"arc: no test data in .* \(looked for ARC-Challenge/test-\*.parquet, test.p"):
        prepared("arc", tmp_path, tmp_path / "task")
    with pytest.raises(BadInput, match="arc: no data; name its directory"):
        write_tasks(CARDS["arc"], BenchmarkSettings(), {}, tmp_path / "task")


def test_examples_are_needed_only_for_shots(data: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "gsm8k"
    shutil.copytree(data["gsm8k"], copy)
    (copy / "main/train-00000-of-00001.parquet").unlink()
    assert prepared("gsm8k", copy, tmp_path / "none", shots=0)
    with pytest.raises(BadInput, match="gsm8k: no train data"):
        prepared("gsm8k", copy, tmp_path / "one", shots=1)
    with pytest.raises(BadInput, match="humaneval: 1 shots asked for, and it has no examples"):
        prepared("humaneval", data["humaneval"], tmp_path / "other", shots=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "x"}\n', "no column answer; it has question"),
        ("", "not readable|no rows"),
        ("{broken", "not readable"),
    ],
)
def test_data_that_are_no_benchmark_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "test.jsonl").write_text(content)
    with pytest.raises(BadInput, match=message):
        prepared("gsm8k", tmp_path, tmp_path / "task", shots=0)


def test_minerva_reads_the_columns_of_math_and_of_the_272(tmp_path: Path) -> None:
    import yaml

    def read(name: str, row: dict[str, str]) -> list[dict[str, Any]]:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "test.jsonl").write_text(json.dumps(row) + "\n")
        (task,) = prepared("minerva", directory, tmp_path / f"{name}-task").values()
        (file,) = yaml.load(task.read_text(), yaml.BaseLoader)["dataset_kwargs"]["data_files"]["test"]
        return [json.loads(line) for line in Path(file).read_text().splitlines()]

    expected = {"problem": "1 + 1?", "solution": "\\boxed{2}"}
    assert read("qa", {"question": "1 + 1?", "answer": "2"}) == [expected]
    assert read("math", expected) == [expected]
    subjects = tmp_path / "subjects"  # as EleutherAI/hendrycks_math has them
    for subject in ("algebra", "geometry"):
        (subjects / subject).mkdir(parents=True)
        (subjects / subject / "test-00000-of-00001.jsonl").write_text(json.dumps(expected) + "\n")
    (task,) = prepared("minerva", subjects, tmp_path / "subjects-task").values()
    assert len(yaml.load(task.read_text(), yaml.BaseLoader)["dataset_kwargs"]["data_files"]["test"]) == 2
    with pytest.raises(BadInput, match="solution of row 0 has no .*boxed answer"):
        read("unboxed", {"problem": "1 + 1?", "solution": "2"})


def in_a_process_of_its_own(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """NLTK remembers where it has found data. `here` is `directory`."""
    start = "import sys; from pathlib import Path; from mnpo.benchmarks import lm_eval; here = Path(sys.argv[1])\n"
    environment = {"HOME": str(directory), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", start + code, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_ifeval_finds_the_sentence_model_as_its_repository_has_it(data: dict[str, Path], tmp_path: Path) -> None:
    """Which is packages/tokenizers/punkt_tab.zip, of github nltk/nltk_data."""
    shutil.copy(data["ifeval"] / "ifeval_input_data.jsonl", tmp_path)
    archive = tmp_path / "nltk/packages/tokenizers/punkt_tab"
    archive.parent.mkdir(parents=True)
    shutil.make_archive(str(archive), "zip", data["ifeval"] / "nltk_data/tokenizers", "punkt_tab")
    code = (
        "directories = {'ifeval': here, 'nltk': here / 'nltk'}\n"
        "lm_eval.write_tasks(lm_eval.CARDS['ifeval'], lm_eval.BenchmarkSettings(), directories, here / 'task')\n"
        "import nltk; text = 'One. Two three. Four'; print(nltk.word_tokenize(text), len(nltk.sent_tokenize(text)))"
    )
    result = in_a_process_of_its_own(code, tmp_path)
    assert result.stdout.strip().endswith("['One', '.', 'Two', 'three', '.', 'Four'] 3"), result.stderr


def test_ifeval_without_a_sentence_model_is_refused_before_the_policy_is_loaded(
    data: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(data["ifeval"] / "ifeval_input_data.jsonl", tmp_path)
    code = (
        "settings = lm_eval.Settings(policy='x', benchmarks={'ifeval': {}})\n"
        "lm_eval.evaluate(settings, Path('/nowhere'), {'ifeval': here})"
    )
    result = in_a_process_of_its_own(code, tmp_path)
    assert "BadInput: ifeval: NLTK's punkt_tab is missing" in result.stderr


# ------------------------------------------------------------------------------------------------------------- refusals


def test_benchmarks_with_a_judge_are_not_for_this_harness(data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="mt-bench: not a benchmark of lm-eval"):
        write_tasks(CARDS["mt-bench"], BenchmarkSettings(), data, tmp_path / "task")


def test_vllm_that_is_not_installed_is_said(sft_policy: Path, data: dict[str, Path]) -> None:
    pytest.importorskip("lm_eval")
    if find_spec("vllm"):
        pytest.skip("vllm is installed")
    with pytest.raises(BadInput, match="vllm is not installed"):
        lm_eval.evaluate(settings("arc", backend="vllm"), sft_policy, data)


def test_humaneval_runs_each_reply_up_to_its_fence(data: dict[str, Path]) -> None:
    from mnpo.storage.records import read_rows

    (file,) = data["humaneval"].rglob("*.parquet")
    problems = read_rows(file)
    right = [[f"{p['canonical_solution']}\n```\nThat is it."] for p in problems]
    assert [o[0].passed for o in run_programs(right, problems)] == [True] * len(problems)
    for problem, outcome in zip(problems, run_programs([["None"]] * len(problems), problems), strict=True):
        assert passed(problem, [outcome]) == {"pass@1": 0.0, "pass@1_mended": 0.0}


@pytest.fixture
def replied(sft_policy: Path, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., lm_eval.Result]:
    """A benchmark's result when the policy says to its n-th item what a script says of it."""
    from lm_eval.models.huggingface import HFLM

    def measure(name: str, script: Callable[[int, dict[str, Any]], str]) -> lm_eval.Result:
        def said(model: Any, requests: Sequence[Any], **_: Any) -> list[str]:
            texts = [script(n, request.doc) for n, request in enumerate(requests)]
            stops = [request.args[1]["until"] for request in requests]
            return [
                min((t.split(stop)[0] for stop in (*s, "<eos>")), key=len) for t, s in zip(texts, stops, strict=True)
            ]

        monkeypatch.setattr(HFLM, "generate_until", said)
        return lm_eval.evaluate(settings(name), sft_policy, data)[name]

    return measure


def test_gsm8k_offers_the_last_number_by_its_value(replied: Callable[..., lm_eval.Result]) -> None:
    def script(n: int, problem: dict[str, Any]) -> str:
        right = problem["answer"].split("####")[1].strip()
        return f"So it is {right}" if n % 4 == 0 else f"So it is ${right}.00." if n % 4 < 3 else "3.00 of 4.50"

    summary, rows = replied("gsm8k", script)
    assert summary["items"] == 8 and summary["value"] == 25  # stock
    assert summary["metrics"]["exact_match,mended"] == 0.75
    assert "exact_match,mended in the metrics" in summary["protocol"]


def test_humaneval_offers_the_code_of_a_reply_that_opens_with_a_fence(
    replied: Callable[..., lm_eval.Result], data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnpo.storage.records import read_rows

    (file,) = data["humaneval"].rglob("*.parquet")
    for row in (rows := read_rows(file)):  # in the form of the benchmark's own
        row["prompt"] = row["prompt"].replace(": return ", ':\n    """What its name says."""\n')
        row["canonical_solution"] = f"    return {row['canonical_solution']}\n"
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setitem(data, "humaneval", tmp_path)

    def script(n: int, problem: dict[str, Any]) -> str:
        body = problem["canonical_solution"]
        whole = f"from math import pi\n\ndef helper():\n    pass\n\n{problem['prompt']}{body}"
        return [body, f"```python\n{whole}\n```\nDone.", f"```\n{body}```", "```python\nnothing"][n % 4]

    summary, rows = replied("humaneval", script)
    share = {k: sum(n % 4 in right for n in range(len(rows))) / len(rows) for k, right in ((1, {0}), (2, {0, 1, 2}))}
    assert summary["value"] == 100 * share[1] and summary["metrics"]["pass@1_mended,create_test"] == share[2]
    assert "pass@1_mended in the metrics" in summary["protocol"]


def test_the_stops_of_humaneval_are_lm_evals() -> None:
    import lm_eval as package
    import yaml

    stock = Path(package.__file__).parent / "tasks/humaneval/humaneval.yaml"
    text = stock.read_text(encoding="utf-8").replace("!function ", "")
    assert tuple(yaml.safe_load(text)["generation_kwargs"]["until"]) == mended.STOPS


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It costs $1,234.00", "1234"), ("1,234.", "1234"), ("-$5.50 or so", "-5.5"), ("so 42...", "42"), ("none", ""),
        ("0.00", "0"), ("#### 12,000", "12000"), ("$.50", "0.5"),
    ],
)  # fmt: skip
def test_the_last_number_is_read_by_its_value(text: str, number: str) -> None:
    assert mended.last_number(text) == number


def test_a_watched_model_is_the_model_for_everything_else(sft_policy: Path) -> None:
    model = load(sft_policy, batch_size=4)
    watched = Watched(model, "x")
    assert watched.max_length == model.max_length == 128 and watched.rank == 0


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", THINKING)
def test_a_right_answer_after_thinking_is_right_and_both_lengths_are_told(
    name: str, special: bool, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thinking may hold what ends an answer (GSM8K's "Question:"); the last of eight items never ends it.

    The tokens are real: lm-eval decodes them.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    directory = thinking_policy(tmp_path / "policy", THINKING[name], special)
    numbers = [row["answer"].split("####")[1].strip() for row in read_rows(next(data["gsm8k"].rglob("test*")))]
    questions = [row["question"] for row in read_rows(next(data["gsm8k"].rglob("test*")))]
    thought = ("" if name == "opened" else "<think>") + "Question: is it 5? #### 5</think>"

    def generate(model: Any, context: Any, *_: Any, **__: Any) -> Any:
        rows = []
        for ids in context:
            prompt = model.tokenizer.decode(ids)
            n = max(range(8), key=lambda n: prompt.rfind(questions[n]))
            text = thought[:-8] if n == 7 else f"{thought}So #### {numbers[n]}\n\nQuestion: another? #### 1"
            rows.append(model.tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"])
        longest = max(map(len, rows))
        padded = [row + [model.tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
        return torch.cat([context, torch.tensor(padded)], 1)

    monkeypatch.setattr(HFLM, "_model_generate", generate)
    chosen = {"gsm8k": BenchmarkSettings(shots=0, max_new_tokens=200)}

    def measured(strip: Any) -> lm_eval.Result:
        return lm_eval.evaluate(Settings(policy="x", benchmarks=chosen, strip=strip), directory, data)["gsm8k"]

    summary, rows = measured(None)
    assert summary["value"] == 100 * 7 / 8 and [row["value"] for row in rows] == [1.0] * 7 + [0.0]
    assert [row["response"] for row in rows] == [*(f"So #### {n}\n\n" for n in numbers[:7]), ""]
    tags = (1 if name == "opened" else 2) if special else (8 if name == "opened" else 15)
    length = len("Question: is it 5? #### 5") + tags
    last = length - (1 if special else 8)
    told, own = summary["thinking"], [len(row["response"]) for row in rows]
    assert (summary["answers"], summary["empty"], told["answers"], told["empty"]) == (8, {"stop": 1}, 8, 1)
    assert told["mean_tokens"] == sum(own) / 8
    assert told["mean_tokens_with_thinking"] == (sum(own) + 7 * length + last) / 8
    if not special:
        summary, rows = measured("none")
        assert summary["value"] == 0 and "thinking" not in summary and "empty" not in summary


# ------------------------------------------------------------------------------------------ what choices take in memory


def test_logits_of_choices_are_bounded_and_their_numbers_are_lm_evals(
    sft_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short and long texts, choices of one and of several tokens; some share all but the last, some are cut."""
    from lm_eval.models.huggingface import HFLM

    model = load_policy(sft_policy, "transformers", dtype="float32", batch_size=4, max_length=48, seed=0)
    usual = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4, max_length=48)
    shapes: list[Any] = []
    model.model.register_forward_hook(lambda *called: shapes.append(called[-1].logits.shape))
    texts = [list(range(5, 5 + n)) for n in (1, 2, 3, 9, 9, 20, 31, 40, 47, 60)]
    requests = [(("", ""), [7, *text], choice) for text in texts for choice in ([11], [12], [13, 14, 15], [16] * 9)]
    expected = usual._loglikelihood_tokens(requests, disable_tqdm=True)
    most, shapes[:] = max(shape.numel() for shape in shapes), []
    assert most == 4 * 48 * shapes_vocabulary(model)

    found = model._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert max(shape[0] for shape in shapes) == 4 and max(shape.numel() for shape in shapes) < most / 2
    assert model.batch_size == 4  # for what is generated

    bound = 15 * shapes_vocabulary(model)
    monkeypatch.setattr(lm_eval_model, "MOST_LOGITS", bound)
    shapes.clear()
    fewer = model._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [value for value, _ in fewer] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert max(shape.numel() for shape in shapes) <= bound
    assert {1, 3} <= {shape[0] for shape in shapes}  # nine positions: one text; one or three: several


def test_vllm_reads_as_many_tokens_of_a_prompt_at_once_as_leave_room_for_their_logits() -> None:
    """With Gemma-2's vocabulary 2,097 of them: logits, and their log-softmax in float32 with its copies, are 8 GB."""
    assert lm_eval_model._within_memory(256_000) == {"max_num_batched_tokens": 2097, "gpu_memory_utilization": 0.8}
    assert lm_eval_model._within_memory(2_000_000)["max_num_batched_tokens"] == 512


@pytest.mark.parametrize(("dtype", "read"), [("bfloat16", "bfloat16"), ("float32", "")])
def test_vllm_reads_the_copy_where_it_computes_in_bfloat16(
    dtype: Any, read: str, random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine:
        def __init__(self, **how: Any) -> None:
            self.how = how

    policy = shutil.copytree(random_policy, tmp_path / "policy")
    save_copy(policy)
    (policy / "manifest.json").write_text("{}")
    monkeypatch.setattr(lm_eval_model, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", SimpleNamespace(VLLM=Engine))
    how = load_policy(policy, "vllm", dtype=dtype, batch_size=4, max_length=48, seed=0).how
    assert (how["pretrained"], how["dtype"]) == (str(policy / read), dtype)


def shapes_vocabulary(model: Any) -> int:
    return model.vocab_size  # type: ignore[no-any-return]
