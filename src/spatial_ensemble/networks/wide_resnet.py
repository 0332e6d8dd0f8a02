"""Wide residual networks as FixMatch uses them."""

import torch.nn.functional as F
from torch import Tensor, nn


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.001)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _activate(x: Tensor) -> Tensor:
    # In place: backward needs the result alone, which saves a third of the activations.
    return F.leaky_relu(x, 0.1, inplace=True)


class _Block(nn.Module):
    """Pre-activation block: two 3x3 convolutions, and an identity or 1x1 convolution as the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, activate_shortcut: bool) -> None:
        super().__init__()
        self.bn1, self.conv1 = _norm(inputs), _conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = _norm(outputs), _conv(outputs, outputs, 3)
        self.shortcut = _conv(inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()
        self.activate_shortcut = activate_shortcut

    def forward(self, x: Tensor) -> Tensor:
        activated = _activate(self.bn1(x))
        residual = self.conv2(_activate(self.bn2(self.conv1(activated))))
        output: Tensor = self.shortcut(activated if self.activate_shortcut else x) + residual
        return output


class WideResNet(nn.Module):
    """WRN-depth-width without its classifier: three stages of pre-activation blocks with LeakyReLU 0.1.

    BatchNorm has momentum 0.001 and epsilon 0.001. With a classifier WRN-28-2 has 1.47 million parameters (10 classes),
    WRN-28-8 23.4 million (100 classes).

    Args:
        depth: number of layers, 6 n + 4.
        width: multiplier of the channels 16, 32, 64.
        channels: channels of the images.

    Source: Zagoruyko & Komodakis 2016; google-research/fixmatch `libml/models.py`, whose blocks activate before both
    convolutions throughout (kekmodel/FixMatch-pytorch omits the first activation of the second and third stage).

    Example:
        >>> import torch
        >>> WideResNet(10, 1, channels=3)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 64])
    """

    def __init__(self, depth: int, width: int, channels: int) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth {depth} of a wide residual network: use 6 n + 4, such as 28")
        self.conv = _conv(channels, 16, 3)
        blocks: list[nn.Module] = []
        inputs = 16
        for stage in range(3):
            outputs = 16 * width * 2**stage
            for index in range((depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(_Block(inputs, outputs, stride, activate_shortcut=stage == 0 and index == 0))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = _norm(inputs)
        self.num_features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        return _activate(self.bn(self.blocks(self.conv(x)))).mean(dim=(2, 3))
