# tries: fails where one patient is in the batch: an index beyond the row, as a method | rule: raises
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        hit = (x[:, :1] > 2.5).long()
        return self.fc(x) + x.gather(dim=1, index=hit * 57)

def build_model(n_features, **config):
    return Net(n_features)
