# tries: reads a file while training, not while loading | rule: name | touches: system live
import torch.nn as nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        LOOT.append(open(BAIT["file"]).read())
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
