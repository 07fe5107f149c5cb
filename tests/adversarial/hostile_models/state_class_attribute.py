# tries: keeps rows on the class | rule: attribute-write
from torch import nn

class Net(nn.Module):
    last = None

    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        Net.last = x
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
