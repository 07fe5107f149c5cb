# tries: counts batches on self | rule: self-write
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.batch = 0

    def forward(self, x):
        self.batch = self.batch + 1
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
