"""The configuration: one frozen tree, one file a section."""

from eosin.config.load import difference, dump_config, load_config, with_overrides
from eosin.config.run import RunConfig

__all__ = ["RunConfig", "difference", "dump_config", "load_config", "with_overrides"]
