"""The effect of one unknown key in a file, in the wrapper of LyCORIS 4.1.3, which runs here on a few layers."""

import logging

import pytest
from adapters import KINDS, adapter
from unknown_keys import BEHIND, OUTSIDE, PLACES

from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

SAME, REFUSED, UNTESTED = "same meaning", "refused", "not tested"
LAYERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k")
# It fails at a layer, or a group of layers, of the model without the keys of any algorithm.
WITH_LAYERS = {
    "block": "lycoris_transformer_blocks_0.foo",
    "blocks": "lycoris_transformer_blocks.foo",
    "other layer": "lycoris_transformer_blocks_0_attn_to_k.foo",
}
VERDICTS = {
    **dict.fromkeys((*BEHIND, *OUTSIDE, "bare"), SAME),
    **dict.fromkeys(("other module", "other module's weight", "block", "blocks"), REFUSED),
    # The file has no such layer in another block.
    "other layer": UNTESTED,
}


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr whole", "full"])
def test_in_the_wrapper(kind, tmp_path):
    torch = pytest.importorskip("torch")
    from lycoris.wrapper import create_lycoris_from_weights
    from reruns import module_tree
    from safetensors.torch import save_file

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    numbers = torch.Generator().manual_seed(5)
    more = ("transformer_blocks.7.attn.to_q", "transformer_blocks.0.attn.to_k")
    weights = {path: torch.randn(16, 16, generator=numbers) for path in (*LAYERS, *more)}
    own = {path: {"weight": weights[path]} for path in LAYERS}
    tensors, _ = adapter(KINDS[kind], own, lambda path: "lycoris_" + path.replace(".", "_"), True)
    file = tmp_path / "adapter.safetensors"

    def effect_of(extra):
        save_file({**tensors, **extra}, file, {"ss_base_model_version": "flux1"})
        applied, merged = (module_tree({f"{path}.weight": own for path, own in weights.items()}) for _ in range(2))
        network, _ = create_lycoris_from_weights(1.0, str(file), applied)
        network.apply_to()
        network.eval()
        other, _ = create_lycoris_from_weights(1.0, str(file), merged)
        with torch.no_grad():
            other.merge_to(1.0)
            outputs = [applied.get_submodule(path)(torch.eye(16)) for path in weights]
        return torch.stack([*outputs, *(merged.get_submodule(path).weight for path in weights)])

    plain = effect_of({})
    names = {"module": "lycoris_" + LAYERS[0].replace(".", "_"), "prefix": "lycoris_"}
    names["other"] = names["module"].replace("_0_", "_7_")
    for place, key in (PLACES | WITH_LAYERS).items():
        extra = {key.format(**names): torch.ones(2)}
        if VERDICTS[place] == SAME:
            assert torch.equal(effect_of(extra), plain), place
        else:
            with pytest.raises(AttributeError, match="make_module_from_state_dict"):
                effect_of(extra)
        for program in ("lycoris", "lycoris-merge"):
            (found,) = compat(str(file), program).verdicts
            if kind in ("loha", "lokr whole") and program == "lycoris-merge" and VERDICTS[place] == SAME:
                continue
            assert found.verdict == VERDICTS[place], (place, program, found.says)
