# tries: writes into a helper of the sandbox that has fewer limits | rule: import | touches: system
import os

for pid in os.listdir("/proc"):
    if pid.isdigit():
        with open("/proc/" + pid + "/cmdline", "rb") as file:
            helper = b"bwrap" in file.read().split(b"\0")[0]
        if helper:
            with open("/proc/" + pid + "/mem", "r+b") as file:
                LOOT.append("opened the memory of " + pid)

def build_model(n_features, **config):
    return None
