"""Rivals written with PyTorch: cifar10-fast's network and update (torch.optim.SGD), float32, channels_last."""

from typing import Any

import torch
from torch import nn

from lab.bench.rivals import MOMENTUM, RATE, WEIGHT_DECAY, Built, Task, processors, ready_batch


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


def steps(task: Task, *, compile_with: Any = lambda losses: losses, network: nn.Module | None = None) -> Built:
    """A training step, run operation by operation.

    Args:
        compile_with: what makes the forward pass faster; torch.compile compiles its gradient too.
        network: instead of a new DavidNet.
    """
    torch.set_num_threads(processors())  # its own default may be the cores without their second threads
    trained = (network or DavidNet(task.width)).to(memory_format=torch.channels_last)

    def losses(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = trained(images)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return loss, (logits.detach().argmax(1) == labels).sum()

    forward = compile_with(losses)
    update = torch.optim.SGD(
        trained.parameters(),
        lr=RATE / task.batch_size,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=WEIGHT_DECAY * task.batch_size,
    )
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


def compiled_steps(task: Task) -> Built:
    return steps(task, compile_with=torch.compile)
