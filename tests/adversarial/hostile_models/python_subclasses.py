# tries: finds os by walking the subclasses of object | rule: dunder | touches: system
def build_model(n_features, **config):
    for kind in ().__class__.__base__.__subclasses__():
        if kind.__name__ == "_wrap_close":
            read = kind.__init__.__globals__["popen"]("echo out").read()
            if read:
                LOOT.append(read)
