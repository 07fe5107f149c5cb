# tries: makes a user namespace to gain privileges | rule: import | touches: system live
import ctypes

if ctypes.CDLL(None).unshare(0x10000000) == 0:
    LOOT.append("unshared")

def build_model(n_features, **config):
    return None
