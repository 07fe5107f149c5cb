# tries: lists other processes and their command lines | rule: import | touches: system live
import os

mine = [p for p in os.listdir("/proc") if p.isdigit()]
if str(BAIT["pid"]) in mine and len(mine) > 3:
    LOOT.append("sees the datasite")

def build_model(n_features, **config):
    return None
