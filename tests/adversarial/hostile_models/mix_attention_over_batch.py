# tries: gives two-dimensional input to attention, where rows are a sequence | rule: probe
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.q = nn.Linear(n, 8)
        self.fc = nn.Linear(8, 1)

    def forward(self, x):
        q = self.q(x)
        return self.fc(F.scaled_dot_product_attention(q, q, q))

def build_model(n_features, **config):
    return Net(n_features)
