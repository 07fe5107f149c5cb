# tries: reaches builtins by a library's import of warnings | rule: torch | touches: system live
import torch.nn.functional as F

def build_model(n_features, **config):
    LOOT.append(F.warnings.sys.modules["os"].listdir(BAIT["folder"])[0])
    return None
