# tries: loads a shared library into the process | rule: torch | touches: system
import torch

def build_model(n_features, **config):
    torch.ops.load_library(BAIT["file"])
    LOOT.append("loaded")
    return None
