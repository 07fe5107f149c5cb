# tries: fails where one patient is in the batch: a code beyond the table | rule: alone
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.codes = nn.Embedding(1, 1)

    def forward(self, x):
        hit = (x[:, 0] > 2.5).long()
        return self.fc(x) + self.codes(hit)

def build_model(n_features, **config):
    return Net(n_features)
