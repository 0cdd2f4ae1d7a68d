"""One run: its bench, its walk and its controls. Imported when a run starts, so that `run.py --help` stays quick."""
