# tries: runs code in a default | rule: default | touches: system
import torch

def build_model(n_features, stolen=open(BAIT["file"]).read(), **config):
    LOOT.append(stolen)
