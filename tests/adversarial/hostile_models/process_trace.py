# tries: attaches to another process to read its memory | rule: import | touches: system
import ctypes

if ctypes.CDLL(None).ptrace(16, BAIT["pid"], None, None) == 0 or ctypes.CDLL(None).ptrace(16, 1, None, None) == 0:
    LOOT.append("attached")

def build_model(n_features, **config):
    return None
