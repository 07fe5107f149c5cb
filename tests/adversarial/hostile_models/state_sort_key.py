# tries: list.sort() that calls a function for each element | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.order = [2.0, 1.0]

    def forward(self, x):
        self.order.sort(key=self.fc)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
