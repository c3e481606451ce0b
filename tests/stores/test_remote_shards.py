"""Jobs that share a base at an address: each fetches the headers of all shards, and of the data its own."""

import pytest
from bases import content, shards, write_adapter, write_base

from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.ops.merge_jobs import ProcessShare, merge_shard
from lora_inspect.reading.model.settings import parse_arguments

# Headers, the index, and the pieces that tell one base of a shape from others; the base has 21 MB.
BESIDE = 3 << 20


@pytest.mark.numeric
@pytest.mark.slow
def test_each_job_fetches_its_own_shards(server, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = (256, 2048)
    write_base(folder / "base", shards(shape=shape))
    write_adapter("lora", shape=shape)

    def planned():
        url = server.url("base/model.safetensors.index.json")
        return plan_merge(url, parse_arguments(["lora"]), MergeOptions())

    merge(planned(), "one")
    for number in (1, 2):
        before = server.bytes
        done = merge_shard(planned(), "out", ProcessShare(number, 2))
        own = sum((folder / "base" / name).stat().st_size for name in done.made)
        assert server.bytes - before <= own + BESIDE
    assert content("out") == content("one")
