"""The settings of a sweep's runs as TensorBoard's own HParams plugin reads them, beside their metrics."""

from types import SimpleNamespace

from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from empathax.training import sweep
from empathax.training.sweep import differing_settings
from empathax.training.tracking import Tracker
from tests.training.tiny import tiny_config


def _sweep():
    return {
        "sigmoid": tiny_config(stages=("dpo",), name="one"),
        "kto": tiny_config(stages=("dpo",), dpo__loss=("kto",), data__unpair=True, dpo__beta=0.2, name="other"),
    }


def test_runs_are_told_apart_by_what_differs():
    assert differing_settings(_sweep()) == {
        "sigmoid": {"data.unpair": False, "dpo.loss": "sigmoid", "dpo.beta": 0.1},
        "kto": {"data.unpair": True, "dpo.loss": "kto", "dpo.beta": 0.2},
    }
    (values,) = differing_settings({"": tiny_config(stages=("sft", "dpo"), dpo__beta=0.3)}).values()
    assert values["dpo.beta"] == 0.3
    assert values["model.path"] == "random:tiny-llama"
    assert "dpo.loss" not in values
    assert "stages" not in values  # as by default


def test_tensorboard_reads_settings_and_metrics(tmp_path):
    jobs = {name: SimpleNamespace(config=config, workdir=tmp_path / name) for name, config in _sweep().items()}
    sweep._write_hparams(jobs)
    for number, name in enumerate(jobs):
        with Tracker(tmp_path / name, "dpo", 0, tensorboard=True) as tracker:
            tracker.scalars(3, "eval", {"reward_margin": 0.5 + number})
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    plugin = backend_context.Context(base_plugin.TBContext(data_provider=provider, logdir=str(tmp_path)))
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING, api_pb2.STATUS_SUCCESS],
        slice_size=10,
        aggregation_type=api_pb2.AGGREGATION_AVG,
    )
    found = list_session_groups.Handler(RequestContext(), plugin, "", request).run()
    groups = {group.name: group for group in found.session_groups}
    assert len(groups) == 2
    values = {group.hparams["dpo.loss"].string_value: group for group in groups.values()}
    assert values.keys() == {"sigmoid", "kto"}
    assert values["kto"].hparams["data.unpair"].bool_value
    assert values["kto"].hparams["dpo.beta"].number_value == 0.2
    margins = {loss: {m.name.tag: m.value for m in group.metric_values} for loss, group in values.items()}
    assert margins == {"sigmoid": {"eval/reward_margin": 0.5}, "kto": {"eval/reward_margin": 1.5}}
