# tries: a Python number of a row, through a keyword | rule: data-dependent
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x) * round(number=x[:, 0])

def build_model(n_features, **config):
    return Net(n_features)
