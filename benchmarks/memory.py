"""Peak memory of one rank in a step of the paper's training, from tensors without content: nothing is computed.

    python -m benchmarks.memory            # Gemma-2 9B on 8 ranks, as config.yaml trains it
    python -m benchmarks.memory --ranks 4 --tokens 4096

The passes are the project's own: forward in bfloat16, checkpointed, the head in chunks, backward, beside AdamW's
moments and the gradients of the micro-batch before. torch's FakeTensorMode stands for the tensors, a process group that
answers at once for the other ranks, and torch's FSDPMemTracker adds up what is alive. The engine is FSDP2: DeepSpeed's
ZeRO-3 cuts the same things, but has buffers of its own, and cannot run without content.
What is not in it: kernels' workspaces, NCCL's buffers, the CUDA context (1 to 2 GB) and fragmentation.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed import device_mesh
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.gpu import LARGE, TOY, Shape
from mnpo.config.training import Training
from mnpo.learning import distributed, training


class Text(NamedTuple):
    """Token ids."""

    prompt: list[int]
    response: list[int]


def model(shape: Shape) -> Any:
    """A Gemma-2 of a shape, without content."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 2,
        head_dim=256 if shape.hidden > 1000 else 32,
    )
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config).train()


def peak(shape: Shape, ranks: int, tokens: int, longest: int, again: bool = True) -> dict[str, float]:
    """Gigabytes of rank 0 at the peak of a step, and of what they are.

    Args:
        shape: of the model.
        ranks: that share it.
        tokens: of a micro-batch, padded.
        longest: of a pair, prompt and both responses; a micro-batch has as many as fit.
        again: whether activations are computed again in the backward pass, and not kept.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    os.environ |= {"RANK": "0", "WORLD_SIZE": str(ranks)}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    settings = Training(
        dtype="bfloat16", parallel="fsdp", gradient_checkpointing=again, micro_batch_tokens=tokens, batch_size=1
    )
    prompt, response = longest // 16, longest * 15 // 32
    texts = [Text([5 + i] * prompt, [7 + j] * response) for i in range(max(1, tokens // longest)) for j in range(2)]
    mesh = device_mesh.init_device_mesh("cpu", (ranks,))  # with content: it is read
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(device_mesh, "init_device_mesh", lambda *_: mesh),
    ):
        module = training.prepared(model(shape), settings)
        engine = distributed.engine(module, settings)
        optimiser = engine._optimiser  # type: ignore[attr-defined]
        for parameter in module.parameters():  # as from the second step on; the fused step itself takes no memory
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimiser.state[parameter] = moments
        tracker = FSDPMemTracker(module, optimiser)
        with tracker:
            for _ in range(2):  # the second micro-batch has the first one's gradients beside it
                tracker.reset_mod_stats()
                with training.precision(settings, engine.module):
                    both = engine.module(texts, reduction="sum")
                engine.backward(both.sum(), last=True)
                del both
    dist.destroy_process_group()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return {str(kind): size / 1e9 for kind, size in snapshot.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch")
    parser.add_argument("--longest", type=int, default=4000, help="tokens of a pair: two texts of 2,048 share a prompt")
    parser.add_argument("--keep", action="store_true", help="activations: without gradient checkpointing")
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    shape = TOY if given.toy else LARGE
    for kind, size in peak(shape, given.ranks, given.tokens, given.longest, not given.keep).items():
        print(f"{kind.rpartition('.')[2]:20} {size:8.3f} GB")


if __name__ == "__main__":
    main()
