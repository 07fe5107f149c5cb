# tries: reads the datasite's environment | rule: import | touches: system live
import os

for name, value in os.environ.items():
    if BAIT["token_name"] == name:
        LOOT.append(value)

def build_model(n_features, **config):
    return None
