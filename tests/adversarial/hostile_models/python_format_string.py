# tries: reads attributes through a format string | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.seen = "{0.__init__.__globals__}".format(nn.Linear)

    def forward(self, x):
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
