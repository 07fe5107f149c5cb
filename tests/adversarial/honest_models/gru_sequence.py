"""GRU over hours of measurements."""

from torch import nn

HOURS = 4


class SequenceNet(nn.Module):
    def __init__(self, n_features, hidden=8, layers=1):
        super().__init__()
        self.channels = n_features // HOURS
        self.gru = nn.GRU(self.channels, hidden, num_layers=layers, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        steps = x.view(x.size(0), HOURS, self.channels)
        out, hidden = self.gru(steps)
        return self.head(hidden[-1])


def build_model(n_features, **config):
    return SequenceNet(n_features)
