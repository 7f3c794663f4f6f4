"""Who computes gradients and moves weights: one process, or several that share a training.

An engine wraps the module whose forward pass the loss is made of, and its optimiser. Gradients are sums over the ranks:
what a rank adds is its rows' share of the step's weighted mean, so a step is the same whatever the number of ranks.

    ddp           every rank has all weights and all of the optimiser (torch's DistributedDataParallel)
    fsdp          both are cut, and gathered layer by layer (torch's FSDP2)
    zero2, zero3  the optimiser and gradients are cut, or all, by DeepSpeed
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mnpo.config.training import Optimisation
from mnpo.errors import BadInput
from mnpo.models.checkpoints import COMPILED_KINDS
from mnpo.ranks import rank, ranks


class Engine(Protocol):
    """A module in training.

    Attributes:
        module: what the loss calls.
    """

    module: Any

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of this rank's part of a step's loss; `last` when the step has no more of them."""

    def step(self, learning_rate: float) -> float:
        """Clip the gradients, take a step unless their norm is not finite, and return the norm before clipping."""

    def save(self, directory: Path) -> list[Path]:
        """Write this rank's files of a checkpoint, and name them."""

    def load(self, directory: Path) -> None:
        """Take up what `save` wrote on this rank."""

    def weights(self) -> dict[str, Tensor]:
        """All trained weights by name, on rank 0; the others may get none."""


def engine(module: nn.Module, optimisation: Optimisation) -> Engine:
    """The engine for `optimisation.parallel` and the number of ranks; its decoder layers are compiled if asked."""
    layers = list(_layers(module))  # before FSDP gives them a class of its own
    several = ranks() > 1 and optimisation.parallel.startswith("zero")
    made: Engine = _DeepSpeed(module, optimisation) if several else _Torch(module, optimisation)
    if optimisation.compile:
        _compile(layers)
    return made


def _compile(layers: Sequence[nn.Module]) -> None:
    """Compile each decoder layer's forward pass, when it first comes.

    The pass and not the call: the hooks of an engine, which gather and release weights, stay outside. Whole or not at
    all (`fullgraph`): where a layer breaks into several graphs, checkpointing runs it uncompiled without a word. After
    the engine is made: of FSDP's class for a layer it is another pass that checkpoints.
    """
    if not layers:
        raise BadInput("compile: true, but transformers does not say what this model's layers are; leave it out")
    for layer in layers:
        layer.forward = torch.compile(  # type: ignore[call-overload] # torch's stubs lack the limit
            layer.forward, dynamic=True, fullgraph=True, recompile_limit=COMPILED_KINDS
        )


def _optimiser(module: nn.Module, optimisation: Optimisation) -> torch.optim.Optimizer:
    weights = [p for p in module.parameters() if p.requires_grad]
    rate, decay = optimisation.learning_rate, optimisation.weight_decay
    if optimisation.optimiser == "rmsprop":
        return torch.optim.RMSprop(weights, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(weights, lr=rate, betas=optimisation.betas, weight_decay=decay, fused=True)


class _Torch:
    """One process, DDP or FSDP2."""

    def __init__(self, module: nn.Module, optimisation: Optimisation) -> None:
        self.module: Any = module
        self._plain, self._clip = module, optimisation.clip or math.inf
        self._sharded = ranks() > 1 and optimisation.parallel == "fsdp"
        if self._sharded:
            _shard(module)
        elif ranks() > 1:
            self.module = nn.parallel.DistributedDataParallel(module)
        self._optimiser = _optimiser(module, optimisation)

    def backward(self, loss: Tensor, last: bool) -> None:
        # The backward pass averages over the ranks. DDP talks once a step; FSDP each time, to keep shards only.
        quiet = self.module.no_sync() if self.module is not self._plain and not last else nullcontext()
        with quiet:
            (loss * ranks()).backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._plain.parameters(), self._clip)
        size = float(getattr(norm, "full_tensor", lambda: norm)())  # of shards, the norm is one too
        if torch.isfinite(torch.tensor(size)):
            for group in self._optimiser.param_groups:
                group["lr"] = learning_rate
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
        return size

    def save(self, directory: Path) -> list[Path]:
        if rank() and not self._sharded:
            return []  # all have the same
        file = self._file(directory)
        with open(file, "wb") as stream:  # a full disk is an OSError so, and not if torch opens the file
            torch.save({"model": self._plain.state_dict(), "optimiser": self._optimiser.state_dict()}, stream)
        return [file]

    def load(self, directory: Path) -> None:
        saved = torch.load(self._file(directory), map_location="cpu", mmap=torch.cuda.is_available(), weights_only=True)
        self._plain.load_state_dict(saved["model"])
        self._optimiser.load_state_dict(saved["optimiser"])

    def _file(self, directory: Path) -> Path:
        return directory / f"weights-{rank() if self._sharded else 0}.pt"

    def weights(self) -> dict[str, Tensor]:
        if not self._sharded:
            return self._plain.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        gathered = get_model_state_dict(self._plain, options=whole)
        once = {name for name, _ in (*self._plain.named_parameters(), *self._plain.named_buffers())}  # tied ones too
        return {name: weight for name, weight in gathered.items() if name in once}  # type: ignore[misc]


def _shard(module: nn.Module) -> None:
    """Each decoder layer by itself, then what is left."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks(),))
    for layer in _layers(module):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    names = {n for m in module.modules() for n in getattr(m, "_no_split_modules", None) or []}
    return (m for m in module.modules() if type(m).__name__ in names)


class _DeepSpeed:
    """ZeRO stage 2 or 3; DeepSpeed's own settings follow from ours."""

    def __init__(self, module: nn.Module, optimisation: Optimisation) -> None:
        try:
            import deepspeed
        except ImportError:
            raise BadInput(
                f"training.parallel: {optimisation.parallel} needs DeepSpeed, which is not installed here; "
                "use the environment of envs/train.txt, or parallel: fsdp"
            ) from None
        if optimisation.compile:  # a layer's weights are gathered before its pass, and not by hooks within
            deepspeed.utils.set_z3_leaf_modules(module, sorted({type(layer).__name__ for layer in _layers(module)}))
        self._gathered = deepspeed.zero.GatheredParameters
        self._plain, self._stage = module, int(optimisation.parallel[-1])
        self.module, *_ = deepspeed.initialize(
            model=module,
            optimizer=_optimiser(module, optimisation),
            config=_deepspeed_settings(optimisation, self._stage),
        )

    def backward(self, loss: Tensor, last: bool) -> None:
        self.module.set_gradient_accumulation_boundary(is_boundary=last)
        self.module.backward(loss * ranks())

    def step(self, learning_rate: float) -> float:
        for group in self.module.optimizer.param_groups:
            group["lr"] = learning_rate
        self.module.step()
        return float(self.module.get_global_grad_norm())

    def save(self, directory: Path) -> list[Path]:
        self.module.save_checkpoint(str(directory), tag="zero")
        ranked = [path for path in directory.rglob("*") if path.is_file() and "zero_pp_rank_" in path.name]
        own = [path for path in ranked if f"zero_pp_rank_{rank()}_" in path.name]
        if rank():
            return own
        return own + [directory / "latest", *(directory / "zero").glob("mp_rank_*")]

    def load(self, directory: Path) -> None:
        self.module.load_checkpoint(str(directory), tag="zero")

    def weights(self) -> dict[str, Tensor]:
        if self._stage == 2:
            return self._plain.state_dict()
        whole = {name: b for name, b in self._plain.state_dict().items() if name in dict(self._plain.named_buffers())}
        for name, parameter in self._plain.named_parameters():
            with self._gathered([parameter]):
                if rank() == 0:
                    whole[name] = parameter.detach().cpu().clone()
        return whole


def _deepspeed_settings(optimisation: Optimisation, stage: int) -> Mapping[str, Any]:
    """Batches and accumulation are ours (learning/batches.py): DeepSpeed is told of one row a step, no accumulation."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimisation.clip,  # 0 is off there too
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,  # RMSprop: it moves each weight by itself, so shards change nothing
        "torch_autocast": {"enabled": optimisation.dtype != "float32", "dtype": optimisation.dtype},
        "steps_per_print": 1 << 60,
    }
