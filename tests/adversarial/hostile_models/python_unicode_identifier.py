# tries: spells exec with look-alike letters | rule: characters
ｅｘｅｃ("import os")

def build_model(n_features, **config):
    return None
