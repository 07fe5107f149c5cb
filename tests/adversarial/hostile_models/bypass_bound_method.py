# tries: keeps a method under another name, so that it counts as building code | rule: in-place
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.cache = []
        self.act = self.remember

    def remember(self, x):
        self.cache.append(x)
        return x

    def forward(self, x):
        return self.fc(self.act(x))

def build_model(n_features, **config):
    return Net(n_features)
