# tries: reads a file with pathlib | rule: import | touches: system live
from pathlib import Path

LOOT.append(Path(BAIT["file"]).read_text())

def build_model(n_features, **config):
    return None
