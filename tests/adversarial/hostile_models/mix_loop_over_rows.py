# tries: walks over the rows | rule: rows
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        total = 0.0
        for row in x:
            total = total + row
        return self.fc(x + total)

def build_model(n_features, **config):
    return Net(n_features)
