# tries: two classes that make one another | rule: recursion
from torch import nn

class A(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = B()

class B(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = A()

def build_model(n_features, **config):
    return A()
