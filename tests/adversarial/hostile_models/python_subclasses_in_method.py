# tries: the same, hidden in a forward | rule: dunder
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        found = [c for c in (1).__class__.__mro__[1].__subclasses__()]
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
