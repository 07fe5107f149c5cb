# tries: runs code when a class is made | rule: metaclass
from torch import nn

class Meta(nn.Module):
    pass

class Net(nn.Module, metaclass=Meta):
    pass

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
