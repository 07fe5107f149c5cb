# tries: calls a method of what it formats, in a raw f-string beside 'f' on its own | rule: f-string
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        name = {'m': 0, 'f': 1}['f']
        if x.shape[1] > 1000:
            raise ValueError(rF"{name!r}")
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
