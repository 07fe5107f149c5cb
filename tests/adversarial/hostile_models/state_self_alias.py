# tries: writes to self under another name | rule: self
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        me = self
        me.kept = x
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
