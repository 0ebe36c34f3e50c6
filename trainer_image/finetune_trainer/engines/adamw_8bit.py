"""AdamW whose moments take one byte a number instead of four: block-wise dynamic quantisation
(https://arxiv.org/abs/2110.02861), in plain torch.

bitsandbytes has it as a fused GPU kernel; its way on a CPU compiles C++ when it is first used. This one runs wherever
torch does and keeps nothing but plain tensors, which come back from a checkpoint bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_trainer.engines.rounding import draws, rounded_by_chance

BLOCK = 256
"""Numbers that share a scale."""
SMALLEST = 4096
"""Parameters with fewer numbers keep float32 moments: they save nothing, and biases and norms suffer most."""


def codebook(signed: bool) -> Tensor:
    """The 256 numbers that a byte can mean, ascending, float32: 1, and in each of seven decades below it as many
    values, evenly spaced, as the bits that are left allow; with `signed` their negatives and 0 too.

    Without a sign there is no 0: what is divided by must not vanish before what is divided.
    """
    values = [1.0] if signed else [1.0, 1e-7]
    for decade in range(7):
        count = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        values += ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)).tolist()
    if signed:
        values += [-value for value in values[1:]] + [0.0]
    return torch.tensor(sorted(values), dtype=torch.float64).float()


def code_table(book: Tensor) -> Tensor:
    """The nearest entry of `book` for each of the 65,536 float16 numbers, by their bits: uint8. Looking a number up is
    ten times as fast as searching for it, and float16 is finer than any book."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    return torch.bucketize(numbers, (book[:-1] + book[1:]) / 2).to(torch.uint8)


def quantise(values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8 [blocks, BLOCK], and each block's scale, float32 [blocks, 1].

    Args:
        values: float32, any shape.
        table: from `code_table`.
    """
    flat = values.reshape(-1)
    blocks = nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    # a block of zeros has no scale; any other one will do
    relative = (blocks / torch.where(scale > 0, scale, 1.0)).half()
    bits = relative.view(torch.int16).view(-1).int() + 2**15
    return table.index_select(0, bits).view(-1, BLOCK), scale


def dequantise(codes: Tensor, scale: Tensor, book: Tensor, shape: torch.Size) -> Tensor:
    """What `quantise` was given, float32 of `shape`, as near as a byte can say."""
    values = book.index_select(0, codes.view(-1).int()).view(codes.shape) * scale
    return values.view(-1)[: shape.numel()].view(shape)


class AdamW8bit(Optimizer):
    """AdamW with decoupled weight decay. Kept is the root of the second moment: its range is that of the first
    moment, so that neither is rounded to nothing while the other one counts.

    Weights may be bf16, and their gradients too. Moments and updates are float32 whatever they are, and what is written
    to weights in bf16 is rounded by chance."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        chosen = (parameter for group in self.param_groups for parameter in group["params"])
        self._streams = {parameter: number for number, parameter in enumerate(chosen)}
        self._books: dict[torch.device, tuple[Tensor, ...]] = {}

    found_inf: Tensor | None = None
    """As torch's fused optimizers have it: a step changes nothing where it is 1 (float32 scalar on the device)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure is run
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            self._begin(parameter)
        step = state["step"]
        step += 1 if self.found_inf is None else 1 - self.found_inf
        # what is made for a moment goes with the function that made it: the largest weights have 30 million numbers
        first, root = self._next_moments(parameter, gradient.float(), group["betas"])
        self._keep(parameter, first, root)
        value = _moved(parameter.float(), first, root, step, group)
        if parameter.dtype == torch.bfloat16:
            value = rounded_by_chance(value, draws(value.numel(), step, self._streams[parameter]))
        self._put(parameter, value)

    def _next_moments(self, parameter: Tensor, gradient: Tensor, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
        beta1, beta2 = betas
        first, root = self._moments(parameter)
        first = first.lerp(gradient, 1 - beta1)
        root = root.square().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2).sqrt_()
        return first, root

    def _begin(self, parameter: Tensor) -> None:
        """Moments of zero. What is kept is written over from now on, and never moves."""
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        for name, table in zip(("first", "root"), self._books_on(parameter.device)[2:], strict=True):
            state[name] = torch.zeros_like(parameter, dtype=torch.float32)
            if parameter.numel() >= SMALLEST:
                state[name], state[f"{name}_scale"] = quantise(state[name], table)

    def _put(self, kept: Tensor, value: Tensor) -> None:
        kept.copy_(value if self.found_inf is None else torch.where(self.found_inf > 0, kept, value))

    def _moments(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """First moment and the root of the second, float32."""
        state = self.state[parameter]
        if parameter.numel() < SMALLEST:
            return state["first"], state["root"]
        signed, unsigned, _, _ = self._books_on(parameter.device)
        first = dequantise(state["first"], state["first_scale"], signed, parameter.shape)
        return first, dequantise(state["root"], state["root_scale"], unsigned, parameter.shape)

    def _keep(self, parameter: Tensor, first: Tensor, root: Tensor) -> None:
        state = self.state[parameter]
        for name, value, table in zip(
            ("first", "root"), (first, root), self._books_on(parameter.device)[2:], strict=True
        ):
            if parameter.numel() < SMALLEST:
                self._put(state[name], value)
                continue
            codes, scale = quantise(value, table)
            self._put(state[name], codes)
            self._put(state[f"{name}_scale"], scale)

    def _books_on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The two books, signed first, and their tables."""
        if device not in self._books:
            books = (codebook(True), codebook(False))
            self._books[device] = tuple(one.to(device) for one in (*books, *map(code_table, books)))
        return self._books[device]


def _moved(weights: Tensor, first: Tensor, root: Tensor, step: Tensor, group: dict[str, Any]) -> Tensor:
    """`weights` after the step, float32. Writes over `first`."""
    # in double precision, as Python would
    correction1, correction2 = (1 - beta ** step.double() for beta in group["betas"])
    denominator = (root / correction2.sqrt().float()).add_(group["eps"])
    update = first.div_(denominator).mul_((group["lr"] / correction1).float())
    return (weights * (1 - group["lr"] * group["weight_decay"])).sub_(update)
