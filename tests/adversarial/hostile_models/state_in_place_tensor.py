# tries: adds rows into a tensor kept on self | rule: attribute
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.kept = torch.zeros(1, n)

    def forward(self, x):
        self.kept.add_(x[:1])
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
