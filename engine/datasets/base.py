"""What every data set shares: its one error."""


class DatasetUnavailable(ValueError):
    """The data set is neither on this machine nor to be had from the network, or its files are damaged or unfit."""
