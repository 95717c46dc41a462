"""A search over the settings of a training, by optuna: trials that are runs, each in a process of its own."""
