# tries: fails where one patient is in the batch: a number of elements by content | rule: torch
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x) + torch.masked_select(x, x > 0)

def build_model(n_features, **config):
    return Net(n_features)
