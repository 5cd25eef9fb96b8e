"""The selection methods by the values of selection.method: a file each."""

from adg.methods import (
    compression,
    controls,
    divergence,
    ifd,
    mig,
    pre_experience,
    scar,
    superfiltering,
)
from adg.methods.method import Method

METHODS: dict[str, Method] = {
    "adg": divergence.METHOD,
    "random": controls.RANDOM,
    "longest": controls.LONGEST,
    "all": controls.ALL,
    "ifd": ifd.METHOD,
    "pre_experience": pre_experience.METHOD,
    "superfiltering": superfiltering.METHOD,
    "superfiltering_d": superfiltering.METHOD_D,
    "zip": compression.METHOD,
    "mig": mig.METHOD,
    "scar": scar.METHOD,
}
