"""What training does on a GPU by kernels of its own where Triton is installed, and by torch everywhere else."""

from types import ModuleType

from quant.runtime.compute import where_installed


@where_installed
def kl_kernels() -> ModuleType:
    from quant.methods.with_model import kl_kernels

    return kl_kernels


@where_installed
def weight_kernels() -> ModuleType:
    from quant.methods.with_model import weight_kernels

    return weight_kernels
