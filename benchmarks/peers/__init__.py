"""What a user would pick instead, against our stages, on the same texts in one run.

    python -m benchmarks.peers                          # SmolLM2-135M-Instruct (`make smollm2`): hours on two cores
    python -m benchmarks.peers --only training --repeats 1
    python -m benchmarks.peers --shape gemma2           # random weights: Gemma-2 with 256,000 words
    python -m benchmarks.peers --toy                    # seconds a part: does it run?

| part | peer | ours |
|---|---|---|
| training | TRL's DPOTrainer, the reference precomputed | stages logps and train, objective dpo |
| lora | the same with peft's adapters, the reference without them | the same with `lora` |
| logps | transformers, static batches by length | stage logps, once for each opponent |
| sampling | transformers' generate; vLLM (`--vllm PYTHON`) | stage sample |
| scoring | transformers' sequence classifier, static batches by length | stage score |
| harness | lm-eval's command line | our command line, stage harness |

Each side of each repetition is a process of its own, run alternately. Seconds are without Python's imports, with the
model's loading and the writing of results; of `harness`, which is two command lines, they are the whole process's. The
peak is the process's largest resident set, libraries and weights included. Speed is shown only where results agree.

What each side is given, for its best:

- Peers get token ids, and tokenize nothing.
- TRL: no gradient checkpointing, fused AdamW, no evaluation, logs or checkpoints; a batch's pairs by falling length, so
  that its micro-batches pad little. TRL 1.16 ignores `padding_free` in DPO, and says so. With each loss it computes
  entropy, mean logits and accuracy, and on a CPU its head reads every position, prompts and padding too (its Triton
  kernel would not); neither can be turned off.
- transformers: the head where a response's token is predicted, and nowhere else.
- lm-eval lists its thousands of tasks before it runs one, which its command line cannot be told to leave out.
- Both: the first of `PARTS`' batch sizes, or with `--tune` the fastest of them, each tried once.

Three opponents are three jobs of ours. In the workflow each has a start of its own, which is not counted here; a model
is loaded for each, on both sides.
"""

from __future__ import annotations

from typing import Any

PAIRS, BATCH, K = 48, 8, 5
DRAWN = 24
"""Prompts that responses are drawn to, and items of the harness."""
NEW_TOKENS = 96
TEXT = {"max_length": 512, "max_prompt_length": 256}
DECODING: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95}
GREEDY_TOKENS = 32
"""Of the answers by which samplers are compared: both sides give each prompt its greedy one."""
BETA, SEED = 0.1, 0
LORA = {"rank": 16, "alpha": 32}
"""Of both sides, on all linear layers but the head. Each draws its first adapters, so losses differ a little."""
