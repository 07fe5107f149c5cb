# tries: imports by the builtin | rule: name | touches: system live
def build_model(n_features, **config):
    LOOT.append(__import__("os").environ[BAIT["token_name"]])
    return None
