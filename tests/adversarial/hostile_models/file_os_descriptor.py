# tries: reads a file by descriptor, below open | rule: import | touches: system live
import os

handle = os.open(BAIT["file"], os.O_RDONLY)
LOOT.append(os.read(handle, 100).decode())

def build_model(n_features, **config):
    return None
