# tries: fills the process table | rule: import | touches: system
import os

for _ in range(50):
    if os.fork() == 0:
        os._exit(0)
LOOT.append("forked 50 times")

def build_model(n_features, **config):
    return None
