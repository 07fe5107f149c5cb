# tries: keeps rows: the call is a keyword of isinstance() | rule: call
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
        if isinstance(x, float, kept=self.remember(x)):
            return self.fc(x)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
