# tries: the same under another name | rule: in-place
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.cache = []

    def forward(self, x):
        kept = self.cache
        kept.append(x)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
