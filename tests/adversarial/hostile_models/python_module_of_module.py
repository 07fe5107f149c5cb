# tries: reaches os by a module's own import | rule: torch | touches: system live
import torch

def build_model(n_features, **config):
    LOOT.append(torch.os.environ[BAIT["token_name"]])
    return None
