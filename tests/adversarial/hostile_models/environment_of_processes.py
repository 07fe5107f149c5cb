# tries: reads the environment of every process it can see | rule: import | touches: system
import glob

for name in glob.glob("/proc/[0-9]*/environ"):
    with open(name, "rb") as file:
        if BAIT["token_name"].encode() in file.read():
            LOOT.append(name)

def build_model(n_features, **config):
    return None
