# tries: starts a process that outlives the worker | rule: import | touches: system live
import os

child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
LOOT.append("forked")

def build_model(n_features, **config):
    return None
