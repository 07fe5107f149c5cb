# tries: keeps rows: the call is the test of a comprehension | rule: in-place
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
        parts = [self.fc(x) for i in range(2) if self.remember(x) is not None]
        return parts[0]

def build_model(n_features, **config):
    return Net(n_features)
