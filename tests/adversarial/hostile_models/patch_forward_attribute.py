# tries: replaces forward on the instance after the checks | rule: override
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)
        self.forward = self.fc

def build_model(n_features, **config):
    return Net()
