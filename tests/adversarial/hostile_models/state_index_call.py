# tries: keeps rows: the call is inside the shape of what it gives | rule: in-place
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.kept = []

    def remember(self, x):
        self.kept.append(x)
        return x

    def forward(self, x):
        return self.fc(x) * self.remember(x).shape[1]

def build_model(n_features, **config):
    return Net(n_features)
