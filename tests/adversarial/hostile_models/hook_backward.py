# tries: scales gradients by a backward hook | rule: attribute
from torch import nn

def big(module, grad_input, grad_output):
    return grad_input

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 1)
    layer.register_full_backward_hook(big)
    return layer
