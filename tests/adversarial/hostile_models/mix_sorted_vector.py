# tries: sorts a vector of rows along the axis that sort takes by itself | rule: probe
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x) + torch.sort(x[:, 0])[0].unsqueeze(1)

def build_model(n_features, **config):
    return Net(n_features)
