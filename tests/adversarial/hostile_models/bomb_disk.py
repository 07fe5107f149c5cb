# tries: fills the disk | rule: import | touches: system
import os

written = 0
for folder in ("/tmp", "/dev/shm", "/var/tmp", "."):
    try:
        with open(os.path.join(folder, "fill"), "wb") as file:
            for _ in range(64):
                written += file.write(bytes(1 << 20))
    except OSError:
        pass
if written > 40 << 20:
    LOOT.append("wrote much")

def build_model(n_features, **config):
    return None
