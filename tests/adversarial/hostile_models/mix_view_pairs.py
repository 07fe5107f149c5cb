# tries: folds two patients into one row and back | rule: probe
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(2 * n, 2)
        self.n = n

    def forward(self, x):
        return self.fc(x.view(-1, 2 * self.n)).view(-1, 1)

def build_model(n_features, **config):
    return Net(n_features)
