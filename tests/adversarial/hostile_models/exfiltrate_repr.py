# tries: shows rows when somebody prints the model | rule: dunder
from torch import nn

class Net(nn.Module):
    def __repr__(self):
        return "rows"

def build_model(n_features, **config):
    return Net()
