# tries: list.pop() on self at each batch | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.order = [2.0, 1.0]

    def forward(self, x):
        return self.fc(x) * self.order.pop()

def build_model(n_features, **config):
    return Net(n_features)
