# tries: makes a value and its gradient disagree | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        h = self.fc(x)
        return h * 1000 - (h * 999).detach()

def build_model(n_features, **config):
    return Net(n_features)
