# tries: writes rows into weights by an initialiser | rule: torch
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        nn.init.normal_(self.fc.weight, mean=1.0)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
