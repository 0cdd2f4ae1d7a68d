"""A SLURM of one machine: programs named sbatch, srun, squeue, sacct and scancel that run what is submitted."""

from __future__ import annotations

import sys
from pathlib import Path

SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, flags=re.MULTILINE))
open("{log}", "a").write(text)
first, last = re.match(r"(\\d+)-(\\d+)", options.get("array", "0-0")).groups()
job = str(os.getpid())
code = "for task in sys.argv[2:]: subprocess.run(['bash', sys.argv[1]], env=os.environ | {{'SLURM_ARRAY_TASK_ID': task}})"
tasks = [str(task) for task in range(int(first), int(last) + 1)]
env = os.environ | {{"SLURM_JOB_ID": job, "SLURM_ARRAY_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}}
env |= {{"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}}
env |= {{"SLURM_CPUS_PER_TASK": "1"}}
call = [sys.executable, "-c", "import os, subprocess, sys\\n" + code, script, *tasks]
subprocess.Popen(call, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
print("Submitted batch job " + job)
"""

SRUN = """#!{python}
import os, shlex, sys
rest = [argument for argument in sys.argv[1:]]
while rest and rest[0].startswith("-"):
    takes_a_value = "=" not in rest[0] and rest[0] in ("--output", "--error", "-o", "-e")
    rest = rest[2:] if takes_a_value else rest[1:]
os.execvp(rest[0], rest)
"""

NOTHING = "#!/bin/sh\necho 'JobID|State|NodeList'\n"


def install(folder: Path) -> Path:
    """Write the programs into `folder`. Returns the file in which the submitted scripts are kept."""
    log = folder / "submitted"
    texts = {"sbatch": SBATCH, "srun": SRUN, "squeue": NOTHING, "sacct": NOTHING, "scancel": NOTHING}
    for name, text in texts.items():
        path = folder / name
        path.write_text(text.format(python=sys.executable, log=log) if "{python}" in text else text)
        path.chmod(0o755)
    return log
