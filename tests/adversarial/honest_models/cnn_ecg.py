"""1-D convolutional network for a signal."""

from torch import nn


class SignalNet(nn.Module):
    def __init__(self, length, channels=8):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, channels, kernel_size=5, padding=2),
            nn.GroupNorm(2, channels),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * channels, 1)

    def forward(self, x):
        return self.head(self.features(x.unsqueeze(1)))


def build_model(n_features, **config):
    return SignalNet(n_features)
