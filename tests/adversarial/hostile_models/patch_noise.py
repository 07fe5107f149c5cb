# tries: replaces the hospital's noise by zeros | rule: import
import datasites.privacy.noise as noise

def build_model(n_features, **config):
    noise.gaussian = zeros
    return None
