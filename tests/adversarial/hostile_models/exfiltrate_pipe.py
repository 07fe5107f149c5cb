# tries: writes to the worker's own pipe, past the noise | rule: import
import os

wrote = 0
for descriptor in range(3, 64):
    try:
        wrote += os.write(descriptor, b"DSW1")
    except OSError:
        pass
if wrote:
    LOOT.append("wrote to a pipe")

def build_model(n_features, **config):
    return None
