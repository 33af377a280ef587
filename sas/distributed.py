"""Several processes: how many there are, whether they are the ones asked for, and sums over them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object
from torch import nn

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


logger = logging.getLogger(__name__)


class LaunchError(RuntimeError):
    """The program was started in a way that would not do what was asked for."""


def check_launch(environment: Mapping[str, str] | None = None) -> None:
    """Refuse a launch that asked for several processes and got one.

    `accelerate launch --cpu --num_processes 2` names a master address and then starts a single process without a rank.
    """
    environment = os.environ if environment is None else environment
    if "MASTER_ADDR" in environment and not {"RANK", "WORLD_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_RANK"} & set(
        environment
    ):
        raise LaunchError(
            "several processes were asked for, but one was started (accelerate launch does this on the CPU): "
            "start them with `torchrun --nproc_per_node 2 train.py ...`, or ask for one"
        )


def check_precision(precision: str, *, cpu: bool = False) -> None:
    """Refuse half precision where there is nothing but a CPU that emulates it, or nothing else may be used (`cpu`)."""
    # What `accelerate launch --cpu` sets.
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    if precision == "no" or not (cpu or told or not torch.accelerator.is_available()):
        return
    if precision == "bf16" and cpu_has_bfloat16():
        return
    raise LaunchError(
        f'training.precision must be "no" on this CPU, got "{precision}": half precision is emulated there and many times slower; '
        "use a GPU, or a CPU with bfloat16 instructions (AMX or AVX512_BF16) and bf16, or leave it out"
    )


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 by itself (Intel's AMX, or AVX512_BF16); False if PyTorch cannot tell."""
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def make_accelerator(*, precision: str, cpu: bool = False) -> Accelerator:
    """Accelerator for one process or plain data parallelism; other launches are refused until they are tested."""
    check_launch()
    check_precision(precision, cpu=cpu)
    # No buffers of our own networks change in training, so they need no broadcast, which would cost a round trip a step. The running
    # statistics of an encoder brought along, which checkpoints keep and roll-outs are drawn with, are shared at each step.
    plain = DistributedDataParallelKwargs(broadcast_buffers=False)
    # Said at each start and of no use there: accelerate cannot pass the new name on yet, and a small copy costs next to nothing.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    # While the first process validates the others wait, for longer than the ten minutes after which they would take it for dead.
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=[plain, patient])
    except ValueError as error:
        if "AcceleratorState has already been initialized" not in str(error):
            raise
        rule = f'training.precision must be the same for all trainings of one Python process, got "{precision}" after another'
        if "cpu=True" in str(error):
            rule = "trainings of one Python process must all be on the CPU or none, got cpu=True after one that was not"
        raise LaunchError(f"{rule}: start a new process, in a notebook a new kernel") from error
    if accelerator.gradient_accumulation_steps != 1:
        raise LaunchError(
            f"accelerate's gradient accumulation must be 1, got {accelerator.gradient_accumulation_steps} "
            "(ACCELERATE_GRADIENT_ACCUMULATION_STEPS, or `accelerate config`): leave it out, and set training.micro_batch, which "
            "accumulates the parts of a batch"
        )
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", precision) and accelerator.is_main_process:
        cure = f"; pass --training.precision {asked} if you want it" if asked in ("fp16", "bf16") else ""
        logger.warning(
            'mixed precision "%s" of `accelerate launch` or `accelerate config` is not used: training.precision is "%s"%s',
            asked,
            precision,
            cure,
        )
    if accelerator.distributed_type not in SUPPORTED:
        raise LaunchError(
            f"distributed type must be data parallel (DDP), got {accelerator.distributed_type.value}: "
            "choose multi-GPU or multi-CPU without further options in `accelerate config`"
        )
    if accelerator.device.type == "cpu" and accelerator.num_processes > 2:
        # After its first step DDP packs the gradients anew, and how they are packed decides in which order those of three processes and more
        # are summed, so that a run that goes on would differ in the last bits from one that never stopped. This keeps the packing; PyTorch
        # warns once, past Python's filters, that it costs a little time.
        plain.find_unused_parameters = True
    return accelerator


def share(total: int, *, rank: int, world_size: int) -> range:
    """Positions of the global batch that a process works on: a contiguous part, all parts of one size."""
    if total % world_size:
        raise LaunchError(
            f"training.batch_size must be divisible by the number of processes = {world_size}, got {total}: "
            f"use {total - total % world_size or world_size}"
        )
    size = total // world_size
    return range(rank * size, (rank + 1) * size)


def agree(accelerator: Accelerator, value: int) -> bool:
    """Whether all processes have the same whole number."""
    if accelerator.num_processes == 1:
        return True
    return len(set(gather_object([value]))) == 1


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Buffers of a network's batch norms, which change in training; our own networks have none."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers()]


def share_from_first(accelerator: Accelerator, tensors: list[torch.Tensor]) -> None:
    """Give all processes the first one's values, in place."""
    if accelerator.num_processes > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


def sum_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum of a small tensor over all processes."""
    return accelerator.reduce(values, reduction="sum") if accelerator.num_processes > 1 else values
