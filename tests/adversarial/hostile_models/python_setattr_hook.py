# tries: sees every write to the module | rule: dunder
from torch import nn

class Net(nn.Module):
    def __setattr__(self, name, value):
        super().__setattr__(name, value)

def build_model(n_features, **config):
    return Net()
