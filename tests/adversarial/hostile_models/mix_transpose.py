# tries: attends over patients | rule: rows
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc((x @ x.transpose(0, 1)) @ x)

def build_model(n_features, **config):
    return Net(n_features)
