"""accelerate's prepare, save_state and load_state, with the hooks by which trainers keep the network alone."""

import accelerate
import pytest
import torch
from torch import nn

from networks import lora_wan

pytestmark = pytest.mark.slow

OPTIONS = {
    "lora": {},
    "rslora": {"use_rslora": "True"},
    "dora": {"use_dora": "True"},
    "all": {"use_rslora": "True", "use_dora": "True", "loraplus_lr_ratio": "8", "exclude_patterns": "['.*ffn.*']"},
    "pissa": {"init_lora_weights": "pissa"},
    "rates": {"use_dora": "True", "loraplus_lr_ratio": "4", "lr_pattern": "{'.*ffn.*': 5e-3, '.*attn2.*': 0}"},
}


@pytest.fixture
def start(wan):
    """A run as a trainer sets it up: (accelerator, model, network, optimizer), the last three prepared."""

    def start_run(kind):
        accelerator = accelerate.Accelerator(cpu=True)
        model = wan()
        network = lora_wan.create_arch_network(1.0, 4, 2.0, None, None, model, **OPTIONS[kind])
        network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
        optimizer = torch.optim.AdamW(network.prepare_optimizer_params(unet_lr=1e-2)[0])
        model = accelerator.prepare(model)
        network, optimizer = accelerator.prepare(network, optimizer)
        unwrapped = accelerator.unwrap_model(network)
        unwrapped.prepare_grad_etc(model)

        def keep_only_the_network(models, parallel):
            for index in reversed(range(len(models))):
                if not isinstance(models[index], type(unwrapped)):
                    parallel.pop(index)

        accelerator.register_save_state_pre_hook(lambda models, weights, _: keep_only_the_network(models, weights))
        accelerator.register_load_state_pre_hook(lambda models, _: keep_only_the_network(models, models))
        return accelerator, model, unwrapped, optimizer

    return start_run


def train(run, inputs, steps=3):
    accelerator, model, network, optimizer = run
    network.on_epoch_start(model)
    losses = []
    for _ in range(steps):
        with accelerator.accumulate(network):
            prediction = model(**inputs, return_dict=False)[0]
            loss = nn.functional.mse_loss(prediction, torch.full_like(prediction, 0.1))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.get_trainable_params(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(start, wan_input, tmp_path, kind):
    run = start(kind)
    train(run, wan_input)
    run[0].save_state(str(tmp_path))
    saved = {key: tensor.clone() for key, tensor in run[2].state_dict().items()}
    onward = train(run, wan_input)

    resumed = start(kind)
    resumed[0].load_state(str(tmp_path))
    network = resumed[2]
    assert network.state_dict().keys() == saved.keys()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, saved[key]), key
        assert tensor.dtype == torch.float32, key
    assert all(type(lora.scale) is float for lora in network.unet_loras)
    assert train(resumed, wan_input) == pytest.approx(onward, rel=1e-6)


@pytest.mark.parametrize(("kind", "message"), [("rslora", "RS-LoRA flag mismatch"), ("lora", r"dora_layer\.weight")])
def test_a_state_of_another_kind_is_refused(start, tmp_path, kind, message):
    start(kind)[0].save_state(str(tmp_path))
    with pytest.raises(RuntimeError, match=message):
        start("dora")[0].load_state(str(tmp_path))
