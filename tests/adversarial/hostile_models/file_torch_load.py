# tries: loads a pickle, which runs code | rule: torch | touches: system
import torch

def build_model(n_features, **config):
    LOOT.append(str(torch.load(BAIT["file"], weights_only=False)))
    return None
