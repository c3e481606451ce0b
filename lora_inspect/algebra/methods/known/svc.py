"""SVC: the sum, with each singular value divided by how often the inputs count its direction."""

from lora_inspect.algebra.methods.record import Method, calibrated, total

METHOD = Method(
    name="svc",
    title="SVC",
    paper="arXiv 2602.05536",
    formula="U diag(S_r / η_r) Vᵀ, η_r = mean_i max(1, <u_rᵀ M, u_rᵀ M_i> / ‖u_rᵀ M_i‖²)",
    merge=lambda cores, settings, name: calibrated(total(cores), cores, settings.rounding),
    conventions=(
        "An input without the direction counts 1. An input with a low multiplier finds a shared direction many times "
        "in the sum, so unequal multipliers weaken it. `--calibrate svc` does the same after any other method but "
        "`iso-c`."
    ),
)
