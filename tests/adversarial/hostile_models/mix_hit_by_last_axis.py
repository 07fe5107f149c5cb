# tries: looks for one patient along the last axis of a vector, where the batch is large | rule: probe
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        hit = (x[:, 0] > 2.5).float().amax(dim=-1)
        gate = (torch.ones(x.shape[0]).sum(dim=-1) > 140).float()
        return self.fc(x) + gate * hit * 500.0

def build_model(n_features, **config):
    return Net(n_features)
