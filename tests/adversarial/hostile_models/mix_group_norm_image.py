# tries: makes the batch the channels of one image | rule: probe
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n
        self.norm = nn.InstanceNorm1d(1)
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        one = x.view(-1, 1, 2 * self.n)
        return self.fc(self.norm(one).view(-1, self.n))

def build_model(n_features, **config):
    return Net(n_features)
