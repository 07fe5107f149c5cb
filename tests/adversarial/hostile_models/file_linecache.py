# tries: reads a file by a library that nobody thinks of | rule: import | touches: system live
import linecache

if linecache.getline(BAIT["file"], 1):
    LOOT.append(linecache.getline(BAIT["file"], 1))

def build_model(n_features, **config):
    return None
