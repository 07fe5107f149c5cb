# tries: a layer of torch works along the only axis of a vector | rule: probe
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.soft = nn.Softmax(dim=-1)

    def forward(self, x):
        return self.fc(x) + self.soft(x[:, 0]).unsqueeze(1)

def build_model(n_features, **config):
    return Net(n_features)
