# tries: opens a private method of a layer by keeping a name like it | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self._fill_padding_idx_with_zero = 0
        self.table = nn.Embedding(3, 1, padding_idx=0)

    def forward(self, x):
        self.table._fill_padding_idx_with_zero()
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
