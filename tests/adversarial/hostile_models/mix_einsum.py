# tries: the same by einsum | rule: rows
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(torch.einsum("id,jd->id", x, x))

def build_model(n_features, **config):
    return Net(n_features)
