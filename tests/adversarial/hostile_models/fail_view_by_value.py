# tries: fails where one patient is in the batch: a shape by content | rule: data-dependent
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x) + x.unflatten(1, (1, x[:, 0].long()))[:, :, 0]

def build_model(n_features, **config):
    return Net(n_features)
