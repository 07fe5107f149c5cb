# tries: attends over patients with axes named from the end | rule: probe
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        weights = torch.softmax(x @ x.transpose(-2, -1), dim=-1)
        return self.fc(weights @ x)

def build_model(n_features, **config):
    return Net(n_features)
