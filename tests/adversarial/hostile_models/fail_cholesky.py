# tries: fails where one patient is in the batch: a matrix that has no root | rule: attribute
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        root = torch.linalg.cholesky(torch.eye(2) * x[:, :1].unsqueeze(2))
        return self.fc(x) + x[:, :1].unsqueeze(2).cholesky()[:, 0]

def build_model(n_features, **config):
    return Net(n_features)
