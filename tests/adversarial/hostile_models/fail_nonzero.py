# tries: fails where one patient is in the batch: places by content | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x) + x.nonzero()[:, :1]

def build_model(n_features, **config):
    return Net(n_features)
