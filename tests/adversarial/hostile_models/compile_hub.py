# tries: downloads and runs a model from the net | rule: torch | touches: system
import torch

def build_model(n_features, **config):
    torch.hub.load("pytorch/vision", "resnet18")
    LOOT.append("downloaded")
    return None
