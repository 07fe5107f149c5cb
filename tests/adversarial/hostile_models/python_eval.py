# tries: evaluates a string | rule: name | touches: system live
def build_model(n_features, **config):
    LOOT.append(eval("open(BAIT['file']).read()"))
    return None
