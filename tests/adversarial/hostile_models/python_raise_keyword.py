# tries: reaches into Python from a keyword of an exception | rule: statement
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        if x.shape[1] > 1:
            raise ValueError(text=().__class__.__base__.__subclasses__())
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
