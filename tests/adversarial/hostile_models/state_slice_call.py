# tries: keeps rows: the call is the step of a slice | rule: in-place
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.kept = []

    def remember(self, x):
        self.kept.append(x)
        return x

    def forward(self, x):
        return self.fc(x)[:, 0 : 1 : self.remember(1)]

def build_model(n_features, **config):
    return Net(n_features)
