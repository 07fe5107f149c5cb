# tries: mixes rows only where a gate opens, with axes named from the end | rule: probe
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        mixed = x.mean(dim=-2, keepdim=True)
        gate = torch.sigmoid(5 * x[:, :1])
        return self.fc(x + gate * mixed)

def build_model(n_features, **config):
    return Net(n_features)
