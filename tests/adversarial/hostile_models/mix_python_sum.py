# tries: adds up rows with the builtin sum | rule: probe
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x + sum(self.fc(x)))

def build_model(n_features, **config):
    return Net(n_features)
