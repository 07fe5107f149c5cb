# tries: attention over a matrix, whose positions are the rows | rule: probe
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(F.scaled_dot_product_attention(x, x, x))

def build_model(n_features, **config):
    return Net(n_features)
