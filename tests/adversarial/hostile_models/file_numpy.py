# tries: reads a file with numpy | rule: import | touches: system live
import numpy

LOOT.append(numpy.fromfile(BAIT["file"], dtype="u1").tobytes().decode())

def build_model(n_features, **config):
    return None
