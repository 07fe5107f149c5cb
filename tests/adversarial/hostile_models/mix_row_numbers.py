# tries: numbers the rows | rule: batch-size
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x) * torch.arange(x.shape[0]).unsqueeze(1)

def build_model(n_features, **config):
    return Net(n_features)
