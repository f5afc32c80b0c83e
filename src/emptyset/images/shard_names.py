"""How the files of a sharded image set are called, and how its card says that it is one."""

KIND = "webdataset shards"


def shard_name(number: int) -> str:
    """File name of a shard; they count from 0."""
    return f"images-{number:06d}.tar"
