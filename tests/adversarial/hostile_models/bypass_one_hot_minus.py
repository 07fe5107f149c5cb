# tries: as many classes as the batch has, by asking for -1 | rule: data-dependent
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x) + F.one_hot((x[:, 0] > 0).long(), num_classes=-1)

def build_model(n_features, **config):
    return Net(n_features)
