# tries: takes a layer off a ModuleList at each batch | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.parts = nn.ModuleList([nn.Linear(n, 1), nn.Linear(n, 1)])

    def forward(self, x):
        return self.parts.pop(0)(x)

def build_model(n_features, **config):
    return Net(n_features)
