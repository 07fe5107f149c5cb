# tries: reads the largest code of the batch from a shape | rule: data-dependent
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        k = F.one_hot(x.abs().long()).shape[-1]
        return self.fc(x) * k

def build_model(n_features, **config):
    return Net(n_features)
