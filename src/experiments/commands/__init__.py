"""The modes of `run mode=<name>`: one module per mode, each with a function `main`.

`main(config, directory, source)` takes the checked config, the folder of this command and the run
folder that `resume=` or `checkpoint=` names, or None. `types.Mode` lists the modes.
"""
