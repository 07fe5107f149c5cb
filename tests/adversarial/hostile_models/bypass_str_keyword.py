# tries: a shape by how long a row's numbers are in writing, through a keyword | rule: data-dependent
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        text = str(object=x)
        return self.fc(x) + torch.zeros(len(text), 1)

def build_model(n_features, **config):
    return Net(n_features)
