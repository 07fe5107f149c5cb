# tries: list.sort() on another name of a list on self | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.order = [2.0, 1.0]

    def forward(self, x):
        order = self.order
        order.sort()
        return self.fc(x) * self.order[0]

def build_model(n_features, **config):
    return Net(n_features)
