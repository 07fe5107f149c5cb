# tries: walks the home folders | rule: import | touches: system
import os

for folder, _, names in os.walk("/root"):
    for name in names:
        if "pyenv" not in folder and "/lib/" not in folder:
            LOOT.append(folder + "/" + name)
for folder, _, names in os.walk("/home"):
    LOOT.extend(names)

def build_model(n_features, **config):
    return None
