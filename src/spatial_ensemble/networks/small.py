"""A small convolutional network for small images, fast on one CPU core."""

from torch import Tensor, nn


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1, inplace=True),
    ]


class SmallNetwork(nn.Module):
    """Three 3x3 convolutions (32, 64, 128 filters) and a global average pool.

    Args:
        channels: channels of the images; their side is at least 4 pixels.

    Example:
        >>> import torch
        >>> SmallNetwork(1)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 128])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_block(channels, 32, 1), *_block(32, 64, 2), *_block(64, 128, 2))
        self.num_features = 128
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x).mean(dim=(2, 3))
        return features
