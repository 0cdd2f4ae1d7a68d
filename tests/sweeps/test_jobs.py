from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from conf import identity, schema
from sweeps.jobs import Job, compose_jobs, labels

CONF = Path(schema.__file__).parent
SHARED = ["model=tiny_llama", "study=test", "tracking=none"]


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    schema.register()
    identity.register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield


def loader_and_master() -> tuple:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.config_loader, hydra.compose_config("config", SHARED, run_mode=RunMode.MULTIRUN)


def own(config: DictConfig) -> dict:
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    assert isinstance(plain, dict)
    return plain


OVERRIDES = [
    ["seed=3"],
    ["pruning.ratio=0.3", "importance=l2"],
    ["importance=l2", "pruning.ratio=0.3", "importance.halves=false"],
    ["pruning.structures=[kv_group,hidden]", "pruning.mlp_layers=[1,2]"],
    ["+pruning.layer_ratios={layers.5.mlp: 0.3}"],
    ["++seed=4", "seed=5"],
    ["~evaluation.texts.passages", "evaluation.items=2"],
    ["schedule=cubic", "schedule.events=7"],
    ["experiment=quickstart", "evaluation.items=3"],
    ["runs_dir=elsewhere", "study=mine", "hydra.sweep.subdir=here"],
    ["recovery.learning_rate=1e-3", "data.calibration_samples=2", "device=cpu"],
]


def test_jobs_are_composed_as_hydra_composes_them() -> None:
    loader, master = loader_and_master()
    jobs = compose_jobs(loader, master, [SHARED + overrides for overrides in OVERRIDES])
    for job, overrides in zip(jobs, OVERRIDES, strict=True):
        config = loader.load_sweep_config(master, SHARED + overrides)
        assert own(job.config) == own(config), overrides
        assert job.folder == Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        assert job.config.hydra.runtime.choices == config.hydra.runtime.choices
        assert job.overrides == (*SHARED, *overrides)


def test_jobs_that_choose_the_same_options_read_the_files_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loader, master = loader_and_master()
    asked = []
    compose = loader.load_sweep_config
    monkeypatch.setattr(loader, "load_sweep_config", lambda *args: asked.append(args) or compose(*args))
    jobs = compose_jobs(
        loader, master, [[f"importance={name}", f"seed={i}"] for i in range(9) for name in ("l1", "l2")]
    )
    assert len(asked) == 2
    assert len({job.folder for job in jobs}) == 18
    assert [job.config.seed for job in jobs] == [i for i in range(9) for _ in range(2)]


@pytest.mark.parametrize("wrong", ["importance=tailor", "sed=1", "seed=much", "pruning.ratio_of=totl", "+seed=1"])
def test_a_job_that_hydra_refuses_is_refused(wrong: str) -> None:
    loader, master = loader_and_master()
    with pytest.raises(HydraException) as expected:
        loader.load_sweep_config(master, [*SHARED, wrong])
    with pytest.raises(HydraException) as found:
        compose_jobs(loader, master, [[*SHARED, "seed=1"], [*SHARED, wrong]])
    assert str(found.value) == str(expected.value)


def test_labels_say_what_jobs_differ_in() -> None:
    loader, master = loader_and_master()
    grid = [
        [*SHARED, f"importance={name}", "seed=1", f"pruning.ratio={r}"] for name in ("l1", "l2") for r in (0.1, 0.2)
    ]
    jobs = compose_jobs(loader, master, grid)
    assert labels(jobs)[1] == "importance=l1 ratio=0.2"
    assert labels(jobs[:1]) == [jobs[0].folder.name]
    assert labels([]) == []
    alike = [["data.batch_size=1", "importance.batch_size=2"], ["data.batch_size=2"]]
    jobs = [Job(tuple(overrides), jobs[0].config, Path("x")) for overrides in alike]
    assert labels(jobs) == ["data.batch_size=1 importance.batch_size=2", "data.batch_size=2"]
