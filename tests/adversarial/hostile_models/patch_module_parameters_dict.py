# tries: reaches the parameter table | rule: override
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self._parameters = {}

def build_model(n_features, **config):
    return Net()
