"""The speedrun's step in PyTorch, written from the recipe of K. Jordan's airbench94_muon, for lab/bench/bench.py.

Float32, eager, channels_last; both optimizers, label smoothing, the whitening's bias. Frameworks are imported
inside the function, as in lab/bench/rivals.py.
"""

import itertools
from collections.abc import Callable

import numpy as np

BIAS_RATE, HEAD_RATE, FILTER_RATE = 0.053, 0.67, 0.24
WIDTHS = (1, 4, 4)  # times the width
WHITENED = 24


def gflop(width: int) -> float:
    """GFLOP an image of a training step: forward and two gradients, two for a multiply-add; 0.71 at width 64."""
    groups, inputs, side, sums = [width * factor for factor in WIDTHS], WHITENED, 31, 0
    for filters in groups:
        sums += 9 * side**2 * inputs * filters
        side //= 2
        sums += 9 * side**2 * filters**2
        inputs = filters
    return 6 * (sums + 31**2 * 12 * WHITENED + 10 * inputs) / 1e9


def pytorch(images: np.ndarray, labels: np.ndarray, width: int, threads: int) -> Callable[[int], None]:
    """A function that trains for a number of steps on one batch.

    Args:
        images: float32 (B, 32, 32, 3).
        labels: int32 (B,).
        width: filters of the first group.
        threads: of PyTorch.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(threads)

    def group(inputs: int, outputs: int) -> nn.Module:
        def norm() -> nn.Module:
            made = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
            made.weight.requires_grad = False
            return made

        first, second = (nn.Conv2d(count, outputs, 3, padding=1, bias=False) for count in (inputs, outputs))
        for convolution in (first, second):
            nn.init.dirac_(convolution.weight.data[: convolution.in_channels])
        return nn.Sequential(first, nn.MaxPool2d(2), norm(), nn.GELU(), second, norm(), nn.GELU())

    whiten = nn.Conv2d(3, WHITENED, 2)
    whiten.weight.requires_grad = False
    sizes = [WHITENED, *(width * factor for factor in WIDTHS)]
    head = nn.Linear(sizes[-1], 10, bias=False)
    network = nn.Sequential(
        whiten,
        nn.GELU(),
        *(group(*pair) for pair in itertools.pairwise(sizes)),
        nn.MaxPool2d(3),
        nn.Flatten(),
        head,
    ).to(memory_format=torch.channels_last)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    filters = [weight for weight in trained if weight.ndim == 4]
    shifts = [weight for weight in trained if weight.ndim == 1]
    decay = 2e-6 * len(images)
    plain = torch.optim.SGD(
        [
            {"params": shifts, "lr": BIAS_RATE, "weight_decay": decay / BIAS_RATE},
            {"params": [head.weight], "lr": HEAD_RATE, "weight_decay": decay / HEAD_RATE},
        ],
        momentum=0.85,
        nesterov=True,
    )
    buffers = [torch.zeros_like(weight) for weight in filters]

    def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
        x = matrix / (matrix.norm() + 1e-7)
        x = x.T if matrix.shape[0] > matrix.shape[1] else x
        for _ in range(3):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return x.T if matrix.shape[0] > matrix.shape[1] else x

    @torch.no_grad()
    def muon() -> None:
        for weight, buffer in zip(filters, buffers, strict=True):
            buffer.mul_(0.6).add_(weight.grad)
            direction = weight.grad.add(buffer, alpha=0.6)
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            update = orthogonal(direction.reshape(len(weight), -1)).reshape(weight.shape)
            weight.add_(update, alpha=-FILTER_RATE)

    batch = torch.from_numpy(images).permute(0, 3, 1, 2)  # (B, 3, 32, 32) over channels-last memory
    targets = torch.from_numpy(labels).long()

    def steps(count: int) -> None:
        total = torch.zeros(())
        for _ in range(count):
            logits = network(batch) / sizes[-1]
            loss = functional.cross_entropy(logits, targets, label_smoothing=0.2, reduction="sum")
            loss.backward()
            plain.step()
            muon()
            for weight in trained:
                weight.grad = None
            total += loss.detach()
        total.item()

    return steps
