# tries: starts a shell | rule: import | touches: system
import os

if os.system("true") == 0:
    LOOT.append("ran a shell")

def build_model(n_features, **config):
    return None
