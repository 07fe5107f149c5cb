# tries: opens append on any list by defining a method of that name | rule: in-place
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.cache = [0]

    def append(self, x):
        return x

    def forward(self, x):
        self.cache.append(x)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
