# tries: runs code in an annotation | rule: annotation | touches: system
import torch

def build_model(n_features, **config: LOOT.append(open(BAIT["file"]).read())):
    return None
