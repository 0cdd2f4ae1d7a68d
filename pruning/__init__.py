"""The model and what is cut out of it: text, units, importance, schedule, allocation, surgery, checkpoints.

Knows no Weights & Biases, no lm-eval, no peft. Importing a module that holds options does not import torch:
`run.py --help` and the skipping of finished runs stay quick.
"""
