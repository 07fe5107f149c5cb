# tries: keeps rows: the call is hidden in the types of isinstance() | rule: call
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
        if isinstance(x, (float, self.remember(x))):
            return self.fc(x)
        return self.fc(x) + len(self.kept)

def build_model(n_features, **config):
    return Net(n_features)
