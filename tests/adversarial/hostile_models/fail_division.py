# tries: fails where one patient is in the batch: a division of integers by zero | rule: raises
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        hit = (x[:, :1] > 2.5).long()
        return self.fc(x) + 1 // (1 - hit)

def build_model(n_features, **config):
    return Net(n_features)
