"""The head of a language model: hidden states -> log-probabilities of given tokens, a tile of tokens by vocabulary at a
time, so that no ``[tokens, vocab]`` logits are ever held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


# --- the head: hidden states -> log-probabilities of given tokens ---------------------------------------------------
def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_tokens: int = 1024,
    chunk_vocab: int = 8192,
) -> Tensor:
    """``log softmax(cap(hidden @ weight.T + bias))[targets]`` in nats, with ``cap(z) = softcap * tanh(z / softcap)``.

    ``hidden [n, d]``, ``weight [vocab, d]``, ``targets [n]`` (int64), ``bias [vocab]`` -> ``[n]`` float32 (float64 from
    float64). Differentiable once, in ``hidden``, ``weight`` and ``bias``. Needs, beyond the gradients, three float32
    tiles of ``[chunk_tokens, chunk_vocab]``. Under autocast the products are taken in its dtype.
    """
    if chunk_tokens < 1 or chunk_vocab < 1:
        raise ValueError(f"chunk_tokens and chunk_vocab must be at least 1, not {chunk_tokens} and {chunk_vocab}")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(weight):
        raise ValueError(f"a target token is outside the head's vocabulary of {len(weight)}")
    device, dtype = hidden.device.type, weight.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:  # autocast leaves float64 alone, and so do we
        dtype = torch.get_autocast_dtype(device)
    # Casting outside the function lets autograd return each gradient in its own tensor's dtype.
    operands = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = _TokenLogprobs.apply(*operands, targets, softcap, chunk_tokens, chunk_vocab)  # type: ignore[no-untyped-call]
    return result


class _TokenLogprobs(torch.autograd.Function):
    """``token_logprobs`` for operands of one dtype: the backward pass computes each tile's logits again.

    Why tiles and not chunks of tokens alone: a tile stays in cache between its half dozen elementwise passes, and the
    weight and its gradient cross memory once per ``chunk_tokens`` tokens, which can then be many.

    Why not an existing kernel: torch's chunked ``linear_cross_entropy`` and Liger's fused loss compute the gradient in
    the forward pass, which needs one scale for all tokens. Here every response has its own, known only after the pair's
    margin against its opponents. torch's (and torchtune's) has no soft-cap either, and Liger's does not run on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        chunk_tokens: int,
        chunk_vocab: int,
    ) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        chosen, log_z = (torch.empty(len(hidden), dtype=dtype, device=hidden.device) for _ in range(2))
        tiles = _Tiles(hidden.device)
        for part in _slices(len(hidden), chunk_tokens):
            normalisers = []
            for block in _slices(len(weight), chunk_vocab):
                logits = _capped_logits(hidden[part], weight, bias, softcap, block, tiles)
                column, inside = _columns(targets[part], block)
                chosen[part] = torch.where(inside, logits.gather(1, column[:, None])[:, 0], chosen[part])
                highest = logits.amax(1)
                # In place, because torch.logsumexp would make a second tile.
                normalisers.append(logits.sub_(highest[:, None]).exp_().sum(1).log_().add_(highest))
            log_z[part] = torch.stack(normalisers).logsumexp(0)
        ctx.save_for_backward(hidden, weight, bias, targets, log_z)
        ctx.softcap, ctx.chunks = softcap, (chunk_tokens, chunk_vocab)
        return chosen - log_z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # The forward pass chose the dtype; autocast around the backward pass must not choose again.
        with torch.autocast(grad.device.type, enabled=False):
            return *_gradients(ctx, grad), None, None, None, None


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What reaches ``hidden``, ``weight`` and ``bias`` from ``grad [n]``; None where nothing is wanted."""
    hidden, weight, bias, targets, log_z = ctx.saved_tensors
    needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    d_hidden = torch.zeros_like(hidden, dtype=log_z.dtype) if needs_hidden else None
    d_weight = torch.zeros_like(weight) if needs_weight else None
    d_bias = torch.zeros_like(bias, dtype=log_z.dtype) if needs_bias else None
    tiles = _Tiles(hidden.device)
    for part in _slices(len(hidden), ctx.chunks[0]):
        for block in _slices(len(weight), ctx.chunks[1]):
            logits = _capped_logits(hidden[part], weight, bias, ctx.softcap, block, tiles)
            d_logits = _d_logits(logits, ctx.softcap, *_columns(targets[part], block), log_z[part], grad[part], tiles)
            if d_bias is not None:
                d_bias[block] += d_logits.sum(0)
            d_logits = d_logits.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[part] += d_logits @ weight[block]
            if d_weight is not None:
                d_weight[block].addmm_(d_logits.T, hidden[part])
    d_hidden = None if d_hidden is None else d_hidden.to(hidden.dtype)
    return d_hidden, d_weight, None if d_bias is None else d_bias.to(bias.dtype)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _columns(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Each target's column in the block, ``[c]``, and whether it is in the block (where not, the column is any)."""
    inside = (targets >= block.start) & (targets < block.stop)
    return (targets - block.start).clamp(0, block.stop - block.start - 1), inside


class _Tiles:
    """Memory of tiles, by what they hold, taken once and overwritten by the next tile.

    Tiles freed one by one leave holes that the CPU's allocator fills late: several times the memory, by chance.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[str, Tensor] = {}

    def of(self, what: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape)
        if what not in self._memory or len(self._memory[what]) < size:
            self._memory[what] = torch.empty(size, dtype=dtype, device=self._device)
        return self._memory[what][:size].view(*shape)


def _capped_logits(
    h: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, block: slice, tiles: _Tiles
) -> Tensor:
    """One tile ``[c, block]`` of the soft-capped logits, at least float32, for the caller to overwrite."""
    shape, dtype = (len(h), block.stop - block.start), torch.promote_types(h.dtype, torch.float32)
    logits = tiles.of("products", shape, h.dtype)
    if bias is None:
        torch.mm(h, weight[block].T, out=logits)
    else:
        torch.addmm(bias[block], h, weight[block].T, out=logits)
    if dtype != h.dtype:
        logits = tiles.of("logits", shape, dtype).copy_(logits)
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _d_logits(
    logits: Tensor,
    softcap: float | None,
    column: Tensor,
    inside: Tensor,
    log_z: Tensor,
    grad: Tensor,
    tiles: _Tiles,
) -> Tensor:
    """Gradient in a tile's logits before the soft-cap: ``grad * (onehot(target) - softmax) * (1 - tanh^2)``.

    Overwrites ``logits``.
    """
    slope = None
    if softcap is not None:
        slope = torch.div(logits, softcap, out=tiles.of("slope", logits.shape, logits.dtype))
        slope.square_().neg_().add_(1)
    d = logits.sub_(log_z[:, None]).exp_().neg_()
    d.scatter_add_(1, column[:, None], inside[:, None].to(d.dtype))
    d.mul_(grad[:, None])
    return d if slope is None else d.mul_(slope)


def project(model: Any, hidden: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
    """``token_logprobs`` through the model's own head and soft-cap."""
    head, softcap = model.get_output_embeddings(), _softcap(model.config)

    def read(h: Tensor) -> Tensor:
        return token_logprobs(h, head.weight, targets, bias=head.bias, softcap=softcap, chunk_tokens=chunk_tokens)

    if _is_cut_by_zero3(head):
        return _as_its_forward(head, read, hidden)
    if _readable(head):
        return read(hidden)
    # A head that is more than its weight (LoRA, quantised, offloaded, or sharded outside ResponseLogprobs) is called
    # as a module, chunk by chunk, and called again in the backward pass. Here chunk_tokens bounds the memory: a few
    # buffers of [chunk_tokens, vocab].
    parts = [(hidden[part], targets[part]) for part in _slices(len(hidden), chunk_tokens)]
    return torch.cat([checkpoint(_through_head, head, h, y, softcap, use_reentrant=False) for h, y in parts])


def _readable(head: Any) -> bool:
    """Whether calling ``head`` is exactly ``linear(h, head.weight, head.bias)`` with a whole weight at hand."""
    return (
        type(head) is nn.Linear
        and not (head._forward_hooks or head._forward_pre_hooks)
        and type(head.weight) in (Tensor, nn.Parameter)  # not a DTensor, not a quantised tensor
        and head.weight.shape == (head.out_features, head.in_features)
    )


def _is_cut_by_zero3(head: nn.Module) -> bool:
    """Whether ZeRO-3 gathers the weights of ``head`` when it is called; ValueError for a head that is no plain layer.

    ``parameters`` and not ``head.weight``: outside the call DeepSpeed would gather it then and there, and keep it.
    """
    cut = any(hasattr(parameter, "ds_id") for parameter in head.parameters())
    if cut and type(head) is not nn.Linear:
        raise ValueError(
            f"under ZeRO-3 every call of the head, a {type(head).__name__}, is one of all ranks together, and its "
            "calls follow from a rank's texts; train it with parallel: fsdp"
        )
    return cut


def _as_its_forward(head: nn.Module, do: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """``do(hidden)`` as the forward pass of ``head``, once, whatever the number of tokens.

    Its hooks gather the weight before, release it after, and do so again around the backward pass. All of these are
    collectives, so every rank has to make as many calls as the others.
    """
    head.forward = do
    try:
        values: Tensor = head(hidden)
    finally:
        del head.forward  # uncovers the class's own
    return values


def _through_head(head: nn.Module, h: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    logits: Tensor = head(h)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)


def _softcap(config: Any) -> float | None:
    """The final soft-cap of a model's text configuration; ValueError for other treatments of the logits."""
    config = config.get_text_config()
    for name in ("logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"{config.model_type} rescales its logits ({name}); mnpo.models.logprobs knows the soft-cap only"
            )
    return getattr(config, "final_logit_softcapping", None)
