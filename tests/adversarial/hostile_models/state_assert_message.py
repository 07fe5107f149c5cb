# tries: keeps rows: the call is the message of an assertion | rule: in-place
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
        assert x.shape[1] > 1000, self.remember(x)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
