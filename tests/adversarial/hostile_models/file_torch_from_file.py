# tries: maps a file as a tensor | rule: torch | touches: system live
import torch

def build_model(n_features, **config):
    found = torch.from_file(BAIT["file"], size=8, dtype=torch.uint8)
    LOOT.append(bytes(found.tolist()).decode())
    return None
