"""Temporal convolutional network with causal, dilated convolutions."""

import torch.nn.functional as F
from torch import nn


class CausalConv(nn.Module):
    def __init__(self, channels_in, channels_out, dilation, kernel=3):
        super().__init__()
        self.left = (kernel - 1) * dilation
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, dilation=dilation)

    def forward(self, x):
        return self.conv(F.pad(x, (self.left, 0)))


class TCN(nn.Module):
    def __init__(self, n_features, channels=8, depth=3):
        super().__init__()
        sizes = [1] + [channels] * depth
        self.layers = nn.ModuleList([CausalConv(sizes[i], sizes[i + 1], 2**i) for i in range(depth)])
        self.head = nn.Linear(channels, 1)

    def forward(self, x):
        h = x.unsqueeze(1)
        for layer in self.layers:
            h = F.relu(layer(h))
        return self.head(h[:, :, -1])


def build_model(n_features, **config):
    return TCN(n_features)
