# tries: fails where one patient is in the batch: scatter | rule: attribute
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        hit = (x[:, :1] > 2.5).long()
        return self.fc(x) + torch.zeros_like(x).scatter(1, hit * 57, x)

def build_model(n_features, **config):
    return Net(n_features)
