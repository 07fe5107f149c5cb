# tries: opens a private attribute of tensors by keeping a name like it | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self._base = 0

    def forward(self, x):
        return self.fc(x) + x[:, :1]._base

def build_model(n_features, **config):
    return Net(n_features)
