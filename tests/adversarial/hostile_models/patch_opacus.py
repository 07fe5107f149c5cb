# tries: replaces a gradient sampler of opacus | rule: import
from opacus.grad_sample import GradSampleModule

GradSampleModule.GRAD_SAMPLERS.clear()

def build_model(n_features, **config):
    return None
