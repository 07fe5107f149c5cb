# tries: compiles and runs a string | rule: name | touches: system live
def build_model(n_features, **config):
    exec(compile("LOOT.append(open(BAIT['file']).read())", "x", "exec"))
    return None
