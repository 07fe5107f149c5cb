# tries: takes memory that private limits do not count | rule: import | touches: system
import mmap

hog = mmap.mmap(-1, 64 << 30)
LOOT.append("mapped 64 GiB")

def build_model(n_features, **config):
    return None
