# tries: scales a gradient by a tensor hook | rule: attribute
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def scale(self, grad):
        return grad * 1000

    def forward(self, x):
        h = self.fc(x)
        h.register_hook(self.scale)
        return h

def build_model(n_features, **config):
    return Net(n_features)
