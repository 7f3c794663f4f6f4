"""How many responses are drawn at once where `batch_size` is `widest`: as many as memory has room for, to the end.

Each is taken to have the longest prompt for itself, and to become as long as it may: whatever is drawn, it fits.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnpo.samplers import Request
from mnpo.samplers.shared_prompts import READ_TOKENS, OtherAttention, SharedPrompts, room_for, shares_prompts

GPU_SHARE, CPU_SHARE = 0.9, 0.5
"""Of a GPU's free memory, and of the memory that a job has on a CPU, libraries and weights included."""
CGROUPS = Path("/sys/fs/cgroup")


@torch.inference_mode()
def widest(model: Any, requests: Sequence[Request], new_tokens: int) -> int:
    """The rows: a power of two, so that machines of about the same memory draw the same; 1 where none would fit.

    Args:
        model: a causal LM, where it will compute.
        requests: of the whole work; more rows than requests are never asked for.
        new_tokens: of a response, at most.
    """
    memory, prompt = free_bytes(model), max((len(request.prompt) for request in requests), default=1)
    fixed, token = _kept(model, shared := _shares(model))
    config, width = model.config.get_text_config(), prompt + room_for(new_tokens)
    size, hidden = model.dtype.itemsize, _number(config, "hidden_size", 1024)
    heads = _number(config, "num_attention_heads", hidden // 64)
    head = _number(config, "head_dim", hidden // max(heads, 1))
    layer = 1 + 1 / _number(config, "num_hidden_layers", 1)  # while a layer's memory grows, it is there twice
    row = layer * (fixed + token * width)
    row += width * heads * (12 + 2 * head * size)  # of one layer: scores three times, keys and values of all heads
    row += _number(config, "vocab_size", 0) * (12 + 2 * size)  # logits of the step twice, and three times in float32
    inner, experts = _number(config, "intermediate_size", 4 * hidden), _number(config, "num_experts_per_tok", 1)
    inner *= 3 if experts == 1 else 5  # a token is copied to its experts
    read = 2 * token + size * experts * (8 * hidden + inner) + 12 * heads * prompt  # a prompt's token, being read
    rows = 1
    while rows < len(requests):
        tokens = 2 * rows * prompt
        if 2 * rows * row + read * (min(tokens, max(READ_TOKENS, prompt)) if shared else tokens) > memory:
            break
        rows *= 2
    return rows


def _number(config: Any, name: str, default: int) -> int:
    """What a configuration says; of layers that differ, the largest, or the default where it does not tell."""
    try:
        value = getattr(config, name, None)
    except Exception:  # transformers 5.23 refuses to answer for layers that differ, with an error of its own
        value = None
    if isinstance(value, (list, tuple)):
        value = max((one for one in value if isinstance(one, int)), default=None)
    return value if isinstance(value, int) and value else default


def free_bytes(model: Any) -> float:
    """What responses may take of the memory where `model` is.

    On a GPU a share of what is free. On a CPU, where what is free is different each time and what is drawn should not
    be: a share of all that the job has, less the weights.
    """
    if model.device.type == "cuda":
        return GPU_SHARE * free_on_gpu()
    weights = sum(part.numel() * part.element_size() for part in model.parameters())
    return CPU_SHARE * job_bytes() - float(weights)


def free_on_gpu() -> float:
    """Bytes, once all that is done with is given back."""
    gc.collect()
    torch.cuda.empty_cache()
    return float(torch.cuda.mem_get_info()[0])


def job_bytes() -> float:
    """The memory of this job: what SLURM or its control group (of version 2) allows it, or a share of the machine's as
    large as its threads are of the cores, whichever is least."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = torch.get_num_threads() / (os.cpu_count() or 1)  # of the machine's, whichever of them this job may use
    return min([machine * min(1.0, share), *_limits()])


def _limits() -> Iterator[float]:
    cpus = float(os.environ.get("SLURM_CPUS_ON_NODE") or 1)
    for name, times in (("SLURM_MEM_PER_NODE", 1.0), ("SLURM_MEM_PER_CPU", cpus)):  # megabytes; 0: all there are
        yield float(os.environ.get(name) or 0) * times * 2**20 or math.inf
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.exists() else []
    for group in (CGROUPS / line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        for directory in (group, *group.parents):
            if directory.is_relative_to(CGROUPS) and (file := directory / "memory.max").is_file():
                said = file.read_text().strip()
                yield math.inf if said == "max" else float(said)


def _shares(model: Any) -> bool:
    """Whether a prompt's memory is held once for all of its responses (`SharedPrompts`), as its first step shows."""
    if not shares_prompts(model):
        return False
    decoder = SharedPrompts(model)
    try:
        decoder.begin([[0]], [0])
        decoder.step(torch.zeros(1, dtype=torch.long, device=model.device))
    except OtherAttention:
        return False
    return True


def _kept(model: Any, shared: bool) -> tuple[float, float]:
    """Bytes that are kept of a text: whatever its length, and for each token."""
    short, long = 8, 16
    few, more = (_bytes_kept(model, length, shared) for length in (short, long))
    token = (more - few) / (long - short)
    return few - short * token, token


def _bytes_kept(model: Any, length: int, shared: bool) -> int:
    from transformers import DynamicCache

    ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
    own = DynamicCache() if shared else None  # None: of the model's own kind, which forgets what its layers forget
    cache = model(input_ids=ids, past_key_values=own, use_cache=True, logits_to_keep=1).past_key_values
    return sum(
        part.numel() * part.element_size()
        for layer in cache.layers
        for part in vars(layer).values()
        if isinstance(part, Tensor)
    )
