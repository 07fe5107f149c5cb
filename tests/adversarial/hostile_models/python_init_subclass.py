# tries: runs code when a class is derived | rule: dunder
from torch import nn

class Base(nn.Module):
    def __init_subclass__(cls, **kwargs):
        cls.kept = []

class Net(Base):
    pass

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
