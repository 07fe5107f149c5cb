# tries: turns a value into a number by slicing with it | rule: data-dependent
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        k = x.abs().long().amax(dim=1).amax(dim=-1)
        return self.fc(x) * x[:, :k].shape[1]

def build_model(n_features, **config):
    return Net(n_features)
