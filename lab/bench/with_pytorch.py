"""Rivals written with PyTorch, channels_last: cifar10-fast's network and update, airbench94_muon's, and its products.

In bfloat16 the forward pass runs under autocast, as PyTorch's users do it.
"""

from typing import Any

import torch
from torch import nn

from lab.bench.rivals import MOMENTUM, RATE, WEIGHT_DECAY, Built, Task, processors, ready_batch
from lab.bench.with_numpy import SGEMM_GFLOP, SGEMM_REPEATS, matrices


def _conv_bn(inputs: int, outputs: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """x + f(f(x)), f being conv-BN-ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv_bn(channels, channels), _conv_bn(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class DavidNet(nn.Module):
    """DavidNet of width c: images (N, 3, 32, 32) to logits (N, 10)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv_bn(3, c),
            *(_conv_bn(c, 2 * c), nn.MaxPool2d(2), Residual(2 * c)),
            *(_conv_bn(2 * c, 4 * c), nn.MaxPool2d(2)),
            *(_conv_bn(4 * c, 8 * c), nn.MaxPool2d(2), Residual(8 * c)),
            *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8 * c, 10, bias=False)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images) * 0.125


def steps(
    task: Task,
    *,
    half: bool = False,
    compiled: bool = False,
    network: nn.Module | None = None,
) -> Built:
    """A training step of DavidNet, run operation by operation.

    Args:
        half: compute in bfloat16, by autocast.
        compiled: the forward pass and its gradient, by torch.compile.
        network: instead of a new DavidNet.
    """
    trained = (network or DavidNet(task.width)).to(memory_format=torch.channels_last)
    update = torch.optim.SGD(
        trained.parameters(),
        lr=RATE / task.batch_size,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=WEIGHT_DECAY * task.batch_size,
    )
    return _training(task, trained, update, half, compiled)


def _training(task: Task, network: nn.Module, update: Any, half: bool, compiled: bool, smoothing: float = 0) -> Built:
    """Steps of a network with an update on one ready batch; `half` and `compiled` as in steps."""
    torch.set_num_threads(processors())  # its own default may be the cores without their second threads

    def losses(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(images)
        loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
        return loss, (logits.detach().argmax(1) == labels).sum()

    forward = torch.compile(losses) if compiled else losses
    arrays = ready_batch(task)
    images = torch.from_numpy(arrays[0]).permute(0, 3, 1, 2)  # (B, 3, 32, 32) over channels-last memory
    labels = torch.from_numpy(arrays[1]).long()

    def run(count: int) -> None:
        loss_sum, hits = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for _ in range(count):
            update.zero_grad(set_to_none=True)
            loss, correct = forward(images, labels)
            loss.backward()
            update.step()
            loss_sum += loss.detach()
            hits += correct
        loss_sum.item(), hits.item()

    return run, task.batch_size


# ---- the speedrun ------------------------------------------------------------------------------------------

WHITENED = 24


def _group(inputs: int, outputs: int) -> nn.Module:
    def norm() -> nn.Module:
        made = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
        made.weight.requires_grad = False
        return made

    first, second = (nn.Conv2d(count, outputs, 3, padding=1, bias=False) for count in (inputs, outputs))
    for convolution in (first, second):
        nn.init.dirac_(convolution.weight.data[: convolution.in_channels])
    return nn.Sequential(first, nn.MaxPool2d(2), norm(), nn.GELU(), second, norm(), nn.GELU())


class SpeedNet(nn.Module):
    """airbench94_muon's network of width c: images (N, 3, 32, 32) to logits (N, 10). Its whitening is in float32."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, WHITENED, 2)
        self.whiten.weight.requires_grad = False
        groups = [_group(*pair) for pair in ((WHITENED, c), (c, 4 * c), (4 * c, 4 * c))]
        self.head = nn.Linear(4 * c, 10, bias=False)
        self.body = nn.Sequential(nn.GELU(), *groups, nn.MaxPool2d(3), nn.Flatten(), self.head)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            whitened = self.whiten(images)
        return self.body(whitened) / self.head.in_features


class Muon:
    """The speedrun's update: Muon for the filters, Nesterov momentum for the shifts and the head."""

    def __init__(self, network: SpeedNet, batch_size: int) -> None:
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        self.filters = [weight for weight in trained if weight.ndim == 4]
        self.buffers = [torch.zeros_like(weight) for weight in self.filters]
        rates = (0.053, [weight for weight in trained if weight.ndim == 1]), (0.67, [network.head.weight])
        groups = [{"params": w, "lr": rate, "weight_decay": 2e-6 * batch_size / rate} for rate, w in rates]
        self.plain = torch.optim.SGD(groups, lr=0.67, momentum=0.85, nesterov=True)

    def zero_grad(self, set_to_none: bool) -> None:
        self.plain.zero_grad(set_to_none)
        for weight in self.filters:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        self.plain.step()
        for weight, buffer in zip(self.filters, self.buffers, strict=True):
            assert weight.grad is not None
            buffer.mul_(0.6).add_(weight.grad)
            direction = weight.grad.add(buffer, alpha=0.6)
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            weight.add_(orthogonalise(direction.reshape(len(weight), -1)).reshape(weight.shape), alpha=-0.24)


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz: (rows, columns) towards the nearest matrix with orthonormal rows, in three steps."""
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(3):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def speedrun(task: Task, *, half: bool = False, compiled: bool = False) -> Built:
    """A training step of the speedrun; `half` and `compiled` as in steps."""
    network = SpeedNet(task.width).to(memory_format=torch.channels_last)
    return _training(task, network, Muon(network, task.batch_size), half, compiled, 0.2)


# ---- the ceiling -------------------------------------------------------------------------------------------


def sgemm(task: Task, *, half: bool = False) -> Built:
    torch.set_num_threads(processors())
    left, right = (torch.from_numpy(matrix).to(torch.bfloat16 if half else torch.float32) for matrix in matrices())
    result = torch.empty_like(left)

    def products(count: int) -> None:
        for _ in range(SGEMM_REPEATS * count):
            torch.mm(left, right, out=result)

    return products, SGEMM_GFLOP
