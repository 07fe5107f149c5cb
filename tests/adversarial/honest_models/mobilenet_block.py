"""Depthwise separable convolutions with squeeze and excitation."""

import math

from torch import nn


class SqueezeExcite(nn.Module):
    def __init__(self, channels, reduced):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        share = self.fc2(self.fc1(self.pool(x)).relu()).sigmoid()
        return x * share


class Separable(nn.Module):
    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.depthwise = nn.Conv2d(channels_in, channels_in, 3, stride=stride, padding=1, groups=channels_in)
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1)
        self.norm = nn.GroupNorm(2, channels_out)
        self.excite = SqueezeExcite(channels_out, 2)
        self.act = nn.Hardswish()

    def forward(self, x):
        return self.excite(self.act(self.norm(self.pointwise(self.depthwise(x)))))


class MobileNet(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.side = int(math.sqrt(n_features))
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(Separable(4, 8, 2), Separable(8, 8, 1))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        n, _ = x.shape
        h = self.blocks(self.stem(x.reshape(n, 1, self.side, self.side)))
        return self.head(h.mean(dim=[2, 3]))


def build_model(n_features, **config):
    return MobileNet(n_features)
