# tries: takes all memory | rule: size | touches: system
import torch

def build_model(n_features, **config):
    hog = torch.ones(100_000, 100_000)
    LOOT.append("took 40 GB")
    return None
