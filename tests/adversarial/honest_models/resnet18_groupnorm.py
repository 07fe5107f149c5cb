"""ResNet-18 (He et al. 2016) with group norm in place of batch norm, on images given as rows of pixels."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv2 = conv3x3(channels, channels)
        self.norm2 = nn.GroupNorm(8, channels)
        self.downsample = None
        if stride != 1 or channels_in != channels * self.expansion:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels * self.expansion, kernel_size=1, stride=stride, bias=False),
                nn.GroupNorm(8, channels * self.expansion),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x
        if self.downsample is not None:
            identity = self.downsample(x)
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + identity)


class ResNet(nn.Module):
    def __init__(self, layers: tuple[int, ...], width: int, n_features: int) -> None:
        super().__init__()
        self.side = int(math.sqrt(n_features))
        self.channels = width
        self.conv1 = nn.Conv2d(1, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages = []
        channels_in = width
        for stage, blocks in enumerate(layers):
            channels = width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels_in, channels, stride))
                channels_in = channels * BasicBlock.expansion
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels_in, 1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(m, nn.GroupNorm):
                nn.init.ones_(m.weight)
                nn.init.zeros_(m.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(x.shape[0], 1, self.side, self.side)
        x = self.maxpool(F.relu(self.norm1(self.conv1(x))))
        x = self.layers(x)
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)


def build_model(n_features: int, width: int = 64, **config) -> nn.Module:
    return ResNet((2, 2, 2, 2), width, n_features)
