"""What `python run.py mode=<name>` does: a module a mode, each with a function `main`.

`main(config, directory, source)` takes the checked config, the folder of this command and the run
folder that `resume=` or `checkpoint=` names, or None. `NEEDS_RUN` says that there must be one.
"""
