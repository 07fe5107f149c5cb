# tries: reaches a dunder by a mangled name | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)

    def forward(self, x):
        return self.fc._Module__dict(x)

def build_model(n_features, **config):
    return Net()
