# tries: the same, unpacked first | rule: batch-size
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        n, d = x.shape
        return self.fc(x) / n

def build_model(n_features, **config):
    return Net(n_features)
