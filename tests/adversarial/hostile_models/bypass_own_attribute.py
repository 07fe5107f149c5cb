# tries: opens an attribute of tensors by defining one of the same name | rule: attribute
from torch import nn

class Net(nn.Module):
    copy_ = None
    unique = None

    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        x.copy_(self.fc(x))
        return x.unique()

def build_model(n_features, **config):
    return Net(n_features)
