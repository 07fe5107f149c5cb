# tries: the same in a helper | rule: data-dependent
from torch import nn

def choose(value):
    return 1.0 if value > 5 else 100.0

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x) * choose(x.amax(dim=1).amax(dim=-1))

def build_model(n_features, **config):
    return Net(n_features)
