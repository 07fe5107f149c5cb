# tries: hides what isinstance() looks at in a lambda | rule: call
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.kept = []

    def forward(self, x):
        if isinstance((lambda: self.kept.append(x))(), float):
            return self.fc(x)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
