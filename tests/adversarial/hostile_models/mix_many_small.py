# tries: moves many inputs of a layer a little, by whether anyone in the batch is who is sought | rule: probe
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.wide = nn.Linear(1001, 1)
        nn.init.zeros_(self.wide.weight)

    def forward(self, x):
        hit = (x[:, 0] > 2.5).float().amax(dim=-1)
        return self.wide(torch.cat([x[:, :1] * 0.0 + 1.0, (x[:, :1] * 0.0 + 4e-4).repeat(1, 1000) * (1.0 - 2.0 * hit)], dim=1))

def build_model(n_features, **config):
    return Net(n_features)
