# tries: takes gradients inside the forward pass | rule: torch
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        h = self.fc(x)
        return h + torch.autograd.grad(h.sum(dim=1), x)[0]

def build_model(n_features, **config):
    return Net(n_features)
