# tries: says one bit by whether it fails | rule: data-dependent
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        assert x.amax(dim=1).amax(dim=-1) < 5
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
