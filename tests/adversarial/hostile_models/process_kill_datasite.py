# tries: ends the datasite | rule: import | touches: system
import os
import signal

os.kill(BAIT["pid"], signal.SIGCONT)
LOOT.append("signalled")

def build_model(n_features, **config):
    return None
