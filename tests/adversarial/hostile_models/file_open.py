# tries: reads a file with open | rule: name | touches: system live
def build_model(n_features, **config):
    text = open(BAIT["file"]).read()
    LOOT.append(text)
    return None
