# tries: counts batches by a generator | rule: expression
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.clock = (i for i in range(10000))

    def forward(self, x):
        for tick in self.clock:
            break
        return self.fc(x) * tick

def build_model(n_features, **config):
    return Net(n_features)
