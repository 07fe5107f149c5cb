# tries: starts a program | rule: import | touches: system live
import subprocess
import sys

LOOT.append(subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, check=True).stdout.decode())

def build_model(n_features, **config):
    return None
