# tries: fails where one patient is in the batch: an assertion about their number | rule: data-dependent
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        assert x[:, 0] < 2.5
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
