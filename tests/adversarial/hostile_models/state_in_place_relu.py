# tries: changes the input of a layer after its norm was taken | rule: in-place
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        h = self.fc(x)
        F.relu(x, True)
        return h

def build_model(n_features, **config):
    return Net(n_features)
