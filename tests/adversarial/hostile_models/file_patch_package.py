# tries: changes the trainer's source on disk for the next start | rule: import | touches: system
import datasites.privacy.noise as noise

with open(noise.__file__, "a") as file:
    file.write("\n")
LOOT.append("changed the trainer")

def build_model(n_features, **config):
    return None
