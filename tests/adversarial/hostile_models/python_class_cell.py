# tries: replaces the class of an object | rule: override
from torch import nn

class Other(nn.Module):
    pass

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.__class__ = Other

def build_model(n_features, **config):
    return Net()
