# tries: writes a file on the host | rule: import | touches: system live
import pathlib

pathlib.Path(BAIT["folder"], "escaped").write_text("here")
LOOT.append("wrote")

def build_model(n_features, **config):
    return None
