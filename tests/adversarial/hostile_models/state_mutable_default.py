# tries: keeps rows in a default argument | rule: default
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x, cache=[]):
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
