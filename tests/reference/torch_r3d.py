"""torchvision's r3d_18 without its classifier, in torch: the same arithmetic under the same parameter names."""

from collections.abc import Sequence

import torch
from torch import nn


def _convolution(inputs: int, outputs: int, window: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, window, stride, padding=window // 2, bias=False)


class Block(nn.Module):
    """Two convolutions of 3 x 3 x 3, and a convolution of 1 x 1 x 1 on the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        norm = nn.BatchNorm3d
        self.conv1 = nn.Sequential(_convolution(inputs, outputs, 3, stride), norm(outputs), nn.ReLU())
        self.conv2 = nn.Sequential(_convolution(outputs, outputs, 3, 1), norm(outputs))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_convolution(inputs, outputs, 1, stride), norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv2(self.conv1(x)) + shortcut)


class Resnet3d(nn.Module):
    """Maps [b, 3, t, h, w] to the last feature map [b, channels, t', h', w']; the defaults are r3d_18."""

    def __init__(
        self,
        stem: Sequence[int] = (3, 7, 7),
        stem_strides: Sequence[int] = (1, 2, 2),
        stem_width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
    ):
        super().__init__()
        padding = tuple(size // 2 for size in stem)
        convolution = nn.Conv3d(3, stem_width, tuple(stem), tuple(stem_strides), padding, bias=False)
        self.stem = nn.Sequential(convolution, nn.BatchNorm3d(stem_width), nn.ReLU())
        self.stages = len(blocks)
        inputs = stem_width
        for i, (count, outputs) in enumerate(zip(blocks, widths, strict=True)):
            layers = [Block(inputs if j == 0 else outputs, outputs, 2 if i and j == 0 else 1) for j in range(count)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))
            inputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return x
