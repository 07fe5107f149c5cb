# tries: keeps a norm of the rows in a tensor on self, out given by position | rule: in-place
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.seen = torch.zeros(1)

    def forward(self, x):
        torch.norm(x[:, :1] - 3.0, 2, 1, False, self.seen)
        return self.fc(x) * self.seen.sum(dim=-1)

def build_model(n_features, **config):
    return Net(n_features)
