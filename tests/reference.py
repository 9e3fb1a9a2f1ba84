"""The layers of the networks in NumPy and float64, straight from their definitions."""

import numpy as np


def conv(images, kernel, padding=None):
    """Convolution with zero padding, by default that of an odd kernel which keeps the side: (N, H, W, C) and
    (size, size, C, K) to (N, H', W', K)."""
    size = kernel.shape[0]
    border = size // 2 if padding is None else padding
    height, width = (side + 2 * border - size + 1 for side in images.shape[1:3])
    padded = np.pad(images.astype(np.float64), [(0, 0), (border, border), (border, border), (0, 0)])
    return sum(
        padded[:, row : row + height, column : column + width] @ kernel[row, column].astype(np.float64)
        for row in range(size)
        for column in range(size)
    )


def conv_bn_relu(block, images, training):
    """The core's ConvBN with its own weights; by the batch's statistics in training."""
    hidden = conv(images, block.conv.kernel.numpy())
    mean, variance = block.norm.running_mean.numpy(), block.norm.running_variance.numpy()
    if training:
        mean, variance = hidden.mean((0, 1, 2)), hidden.var((0, 1, 2))
    normal = (hidden - mean) / np.sqrt(variance + 1e-5) * block.norm.scale.numpy() + block.norm.shift.numpy()
    return np.maximum(normal, 0)


def pool(images, size=2):
    """The highest of each square; rows and columns that fill none are left out."""
    n, height, width, channels = images.shape
    rows, columns = height // size, width // size
    images = images[:, : rows * size, : columns * size]
    return images.reshape(n, rows, size, columns, size, channels).max((2, 4))


def unsettled(net):
    """So that no scale is 1, no shift 0 and no running statistic at its start; the network."""
    generator = np.random.default_rng(1)
    for weight in net.weights:
        if weight.path.rpartition("/")[2] in ("scale", "shift", "running_mean", "running_variance"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return net
