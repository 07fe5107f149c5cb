# tries: the same in a helper that gets the list | rule: in-place
from torch import nn

def keep(items, x):
    items.append(x)
    return x

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.cache = []

    def forward(self, x):
        return self.fc(keep(self.cache, x))

def build_model(n_features, **config):
    return Net(n_features)
