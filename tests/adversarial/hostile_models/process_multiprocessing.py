# tries: starts a process by multiprocessing | rule: import | touches: system
import multiprocessing

worker = multiprocessing.get_context("fork").Process(target=print)
worker.start()
worker.join()
LOOT.append("started a process")

def build_model(n_features, **config):
    return None
