# tries: counts batches by an iterator that it reads a little each time | rule: iterator
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.clock = enumerate(range(10000))

    def forward(self, x):
        for tick, _ in self.clock:
            break
        return self.fc(x) * tick

def build_model(n_features, **config):
    return Net(n_features)
