# tries: makes a function the default of an argument, and calls that | rule: default
from torch import nn

def keep(x):
    return x

def pick(x, how=keep):
    return how(x)

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(pick(x))

def build_model(n_features, **config):
    return Net(n_features)
