"""What chooses the records of the subsets: the values of selection.method, a file each."""

from collections.abc import Callable
from pathlib import Path

from adg.config import Config
from adg.methods.choice import Choice
from adg.methods.compression import choose_by_compression
from adg.methods.controls import choose_all, choose_at_random, choose_longest
from adg.methods.divergence import choose_by_divergence
from adg.methods.ifd import choose_by_ifd
from adg.methods.mig import choose_by_information_gain
from adg.methods.pre_experience import choose_for_pre_experience
from adg.methods.scar import choose_by_style
from adg.methods.superfiltering import choose_by_superfiltering, choose_by_superfiltering_d
from adg.records import Pool

METHODS: dict[str, Callable[[Path, Pool, Config], Choice]] = {
    "adg": choose_by_divergence, "random": choose_at_random, "longest": choose_longest,
    "all": choose_all, "ifd": choose_by_ifd, "pre_experience": choose_for_pre_experience,
    "superfiltering": choose_by_superfiltering, "superfiltering_d": choose_by_superfiltering_d,
    "zip": choose_by_compression, "mig": choose_by_information_gain,
    "scar": choose_by_style,
}
