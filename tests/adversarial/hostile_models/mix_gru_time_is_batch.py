# tries: runs the recurrence along the batch | rule: probe
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.gru = nn.GRU(n, 4)
        self.fc = nn.Linear(4, 1)

    def forward(self, x):
        out, _ = self.gru(x.unsqueeze(1))
        return self.fc(out[:, -1])

def build_model(n_features, **config):
    return Net(n_features)
