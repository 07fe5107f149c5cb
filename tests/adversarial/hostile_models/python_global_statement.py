# tries: keeps rows in a global | rule: statement
from torch import nn

KEPT = None

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        global KEPT
        KEPT = x
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
