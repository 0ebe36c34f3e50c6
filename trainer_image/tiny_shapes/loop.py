"""What the training stages share: device, precision, learning rate, moving average, checkpoints, progress."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

CHECKPOINT_EVERY = 100


def device() -> torch.device:
    """A GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision() -> AbstractContextManager[Any]:
    """bf16 autocast where it is faster: on a GPU, and on CPUs with bf16 instructions. Weights stay in fp32."""
    where = device()
    capable = where.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=capable)


def join_workers() -> None:
    """Under torchrun, makes this process one of several that share each batch; otherwise does nothing.

    On a CPU several processes of one thread each beat one process of several threads as soon as anything else runs on
    the machine: they wait for one another once a step, not in every operator.
    """
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        torch.set_num_threads(1)
        dist.init_process_group("gloo")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def share(batch: int) -> int:
    """This process's part of a batch."""
    return batch // (dist.get_world_size() if dist.is_initialized() else 1)


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def average_gradients(module: nn.Module) -> None:
    """Makes each gradient the mean over all processes."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


def learning_rate(step: int, total: int, peak: float, decay_share: float = 0.4) -> float:
    """Warm-up, plateau, then linearly to zero: a run can be prolonged up to the moment when the decay begins."""
    warm = min(1.0, (step + 1) / 100)
    cool = min(1.0, (total - step) / (decay_share * total))
    return peak * min(warm, cool)


class MovingAverage:
    """Exponential moving average of a module's floating-point state, with a warm-up so that it forgets the start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)


@dataclass
class Trainee:
    """A module in training, with all that a checkpoint must hold."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage
    peaks: list[float]

    @classmethod
    def of(cls, module: nn.Module, groups: list[tuple[list[nn.Parameter], float]], ema_decay: float) -> "Trainee":
        """groups: parameters and their peak learning rates."""
        optimizer = torch.optim.AdamW(
            [{"params": parameters} for parameters, _ in groups], betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        return cls(module, optimizer, MovingAverage(module, ema_decay), [peak for _, peak in groups])

    def save(self, path: Path, step: int) -> None:
        state = {
            "step": step,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> int:
        state = torch.load(path, map_location=device(), weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values = state["average"]
        return int(state["step"])


def run_stage(
    name: str,
    trainee: Trainee,
    steps: int,
    loss_of: Callable[[int], Tensor],
    checkpoint: Path,
    watch: Callable[[int], str] | None = None,
) -> None:
    """Trains until `steps`, from the checkpoint where there is one, and leaves the moving average in the module.

    loss_of(step) draws this process's share of the batch from the step and the rank alone, so that a resumed run sees
    what an unbroken one would.
    watch(step) is called with the moving average in place at each checkpoint; its words are printed.
    """
    first = trainee.load(checkpoint) if checkpoint.exists() else 0
    wait_for_all()
    smooth: float | None = None
    with _progress() as progress:
        task = progress.add_task(name, total=steps, completed=first, note="")
        for step in range(first, steps):
            for group, peak in zip(trainee.optimizer.param_groups, trainee.peaks, strict=True):
                group["lr"] = learning_rate(step, steps, peak)
            loss = loss_of(step)
            loss.backward()
            average_gradients(trainee.module)
            nn.utils.clip_grad_norm_(trainee.module.parameters(), 1.0)
            trainee.optimizer.step()
            trainee.optimizer.zero_grad(set_to_none=True)
            trainee.average.update(trainee.module, step)
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            progress.update(task, completed=step + 1, note=f"loss {smooth:.4f}")
            if (step + 1) % CHECKPOINT_EVERY == 0 and rank() == 0:
                trainee.save(checkpoint, step + 1)
                words = f"{name} step {step + 1}: loss {smooth:.4f}"
                if watch is not None:
                    with averaged(trainee):
                        words += f", {watch(step + 1)}"
                progress.console.print(words)
    trainee.module.load_state_dict(trainee.average.values)
    trainee.module.eval()


class averaged:
    """Puts the moving average in place for as long as the context lasts."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee = trainee

    def __enter__(self) -> None:
        module = self.trainee.module
        self.live = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.trainee.average.values)
        module.eval()

    def __exit__(self, *_: object) -> None:
        self.trainee.module.load_state_dict(self.live)
        self.trainee.module.train()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=rank() != 0,
    )


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cover `count` items, `size` at a time."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
