# tries: replaces named_parameters, so that a weight escapes clipping | rule: override
from torch import nn

class Net(nn.Module):
    def named_parameters(self):
        return []

    def parameters(self):
        return []

def build_model(n_features, **config):
    return Net()
