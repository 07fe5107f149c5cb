# tries: set.add() on what the configuration brought | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.seen = {}

    def forward(self, x):
        self.seen.add(1)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
