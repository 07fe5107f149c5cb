# tries: keeps rows: isinstance() of an element of a call's result | rule: call
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
        if isinstance(self.remember(x)[:, 0], float):
            return self.fc(x)
        return self.fc(x) + len(self.kept)

def build_model(n_features, **config):
    return Net(n_features)
