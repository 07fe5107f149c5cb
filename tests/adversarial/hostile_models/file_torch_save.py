# tries: writes the rows to a file with torch.save | rule: torch | touches: system
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        torch.save(x, BAIT["folder"] + "/rows.pt")
        LOOT.append("wrote rows")
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
