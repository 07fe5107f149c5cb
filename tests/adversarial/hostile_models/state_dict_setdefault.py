# tries: dict.setdefault() on self, with a method of that name | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.seen = {}

    def setdefault(self, key, x):
        return x

    def forward(self, x):
        return self.fc(self.seen.setdefault(0, x))

def build_model(n_features, **config):
    return Net(n_features)
