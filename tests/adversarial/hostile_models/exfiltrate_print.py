# tries: prints rows | rule: name
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        print(x)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
