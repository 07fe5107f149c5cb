# tries: makes the batch a sequence | rule: rows
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.gru = nn.GRU(n, 4, batch_first=True)
        self.fc = nn.Linear(4, 1)

    def forward(self, x):
        out, _ = self.gru(x.unsqueeze(0))
        return self.fc(out.squeeze(0))

def build_model(n_features, **config):
    return Net(n_features)
