# tries: runs code when an attribute is read | rule: dunder
from torch import nn

class Spy(nn.Module):
    def __get__(self, instance, owner):
        return instance

class Net(nn.Module):
    spy = Spy()

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
