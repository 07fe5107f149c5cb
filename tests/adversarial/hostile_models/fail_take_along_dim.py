# tries: fails where one patient is in the batch: take_along_dim | rule: torch
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        hit = (x[:, :1] > 2.5).long()
        return self.fc(x) + torch.take_along_dim(x, hit * 57, 1)

def build_model(n_features, **config):
    return Net(n_features)
