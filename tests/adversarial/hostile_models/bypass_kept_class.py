# tries: keeps a class and makes one of it for every batch | rule: in-place
from torch import nn

class Keeper(nn.Module):
    def __init__(self, items, x):
        super().__init__()
        items.append(x)

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.cache = []
        self.make = Keeper

    def forward(self, x):
        self.make(self.cache, x)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
