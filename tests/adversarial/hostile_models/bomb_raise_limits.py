# tries: raises its own limits | rule: import | touches: system
import resource

resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))
LOOT.append("raised")

def build_model(n_features, **config):
    return None
