# tries: adds gradients by itself | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        h = self.fc(x)
        h.sum(dim=1).backward()
        return h

def build_model(n_features, **config):
    return Net(n_features)
